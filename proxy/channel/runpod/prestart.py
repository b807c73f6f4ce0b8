"""The events that a worker with Runpod's SDK 2 posts in place of a result.

Such a worker takes jobs while its start hooks run, and runs them afterwards. If a hook fails, or if
a shutdown cancels the hooks, it posts an event for each of these jobs.
"""

from enum import StrEnum

import msgspec

from proxy.channel.runpod.openai import ERROR_MAX_BYTES

REASON_CHARACTERS = 500


class PrestartEvent(StrEnum):
    """The kind of an event."""

    FAILED = "prestart_failed"
    CANCELLED = "prestart_cancelled"


class Prestart(msgspec.Struct):
    """An event, as the SDK encodes it into the text of an error."""

    event: PrestartEvent
    worker_id: str
    error_type: str = ""
    error_message: str = ""
    hook: str = ""

    @property
    def reason(self) -> str:
        """The reason for people: the hook that has failed, and its exception."""
        where = f" in {self.hook}" if self.hook else ""
        return f"prestart failed{where}: {self.error_type}: {self.error_message}"[
            :REASON_CHARACTERS
        ]


_text_decoder = msgspec.json.Decoder(str)
_decoder = msgspec.json.Decoder(Prestart)


def read_prestart(error: bytes) -> Prestart | None:
    """Return the event in an `error` in its JSON encoding; None if it is another error."""
    if b'\\"prestart_' not in error or len(error) > ERROR_MAX_BYTES:
        return None
    try:
        return _decoder.decode(_text_decoder.decode(error))
    except (msgspec.MsgspecError, RecursionError):
        return None
