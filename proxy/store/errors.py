"""The errors of a job store: full, failing for now, or gone for good."""


class StoreError(Exception):
    """The store could not carry out a call. The call has had no effect.

    What has to be written is kept and repeated, with the same data, after a full or a busy store.
    What can be refused is refused. Nothing else depends on the store.
    """


class StoreFullError(StoreError):
    """The store has no space for another job or, in the worst case, for any write."""


class StoreBusyError(StoreError):
    """The store fails for now: another program has locked it, or its disk reports errors."""


class StoreGoneError(StoreError):
    """The store fails for good: its file was deleted, replaced or damaged. So will every later
    call.
    """


class OtherSubmissionError(Exception):
    """A job with the same key was submitted with another request body. The call had no effect."""

    def __init__(self) -> None:
        super().__init__(
            "This `Idempotency-Key` was used with another request body. Send a new key with a new"
            " request."
        )


class StoreUnavailableError(Exception):
    """The store cannot be opened. The message names the reason and the remedy."""
