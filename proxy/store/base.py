"""The contract of a job store. These docstrings are its specification; `tests/contract/` holds every store to it."""

from collections.abc import Collection, Sequence
from contextlib import AbstractAsyncContextManager
from typing import Protocol

from proxy.jobs.lifecycle import Event, Status
from proxy.jobs.model import (
    Counts,
    Delivery,
    EndpointId,
    Job,
    JobError,
    JobId,
    Millis,
    Owner,
    Submission,
    WorkerId,
)


class StoreFullError(Exception):
    """There is no room: for another durable job, or, worse, for anything that would have to be written."""


class StoreUnavailableError(Exception):
    """The store cannot be opened. The message says why, and what to do."""


class JobStore(Protocol):
    """Where jobs are, in which order they leave the queue, and the one place where their status changes.

    Every write is one conditional write taken from the lifecycle table: it happens whole, or the answer says that the
    moment has passed. Time is always an argument; a store has no clock. What has been acknowledged for a durable job
    (the method has returned) survives whatever the store promises to survive. Methods are safe to call concurrently,
    and a caller that is cancelled leaves either the whole effect or none.

    A store that has a place for them keeps durable jobs written as long as it can: `submit` is refused long before
    there is no room for the rest. When there is none left even so, any method that writes about a durable job may raise
    `StoreFullError`; it has had no effect then, and will be possible again.
    """

    durable: bool
    """Whether what was acknowledged for a durable job survives the end of the process."""

    def open(self) -> AbstractAsyncContextManager[None]:
        """Open the store, once, before anything else; leaving closes it. Raises `StoreUnavailableError`."""
        ...

    async def running(self) -> Sequence[Job]:
        """Outlines of all durable jobs that are IN_PROGRESS: for a start, when their workers are still to come back."""
        ...

    async def submit(self, submission: Submission, now: Millis) -> Job:
        """Put a new job at the end of its endpoint's queue; it is IN_QUEUE and its attempt is 0.

        An id that is already there gives the job that is there, unchanged: a submit may be repeated. Raises
        `StoreFullError`, and has no effect, when there is no room for a durable job.
        """
        ...

    async def get(self, endpoint: EndpointId, owner: Owner, job_id: JobId) -> Job | None:
        """The job, or None when this owner has none by this id on this endpoint (nothing tells these cases apart).

        Without the request's body and `s3_config`: no client is shown them, and one that asks again and again must not
        bring 20 MB into memory with each question.
        """
        ...

    async def find(self, job_id: JobId) -> Job | None:
        """The job by its id alone: for the proxy's own work, never to answer a client."""
        ...

    async def recent(
        self,
        endpoint: EndpointId,
        owner: Owner,
        *,
        before: int | None,
        limit: int,
        status: Status | None = None,
    ) -> Sequence[Job]:
        """Outlines of this owner's jobs, newest first, by sequence; `before` is the last page's smallest sequence."""
        ...

    async def take(
        self, endpoint: EndpointId, worker: WorkerId, *, limit: int, light_limit: int, now: Millis
    ) -> Sequence[Job]:
        """Hand out up to `limit` jobs and `light_limit` light jobs, and nothing else ever leaves the queue.

        It may be fewer when their bodies are large, but at least one where there is one: ask again.

        Order: normal before low priority, then by sequence; a job of low priority that was created `policy.LOW_WAITS`
        ago or earlier counts as normal. Each is now IN_PROGRESS with this worker, its attempt is one higher than ever
        before, `taken_at` is `now`, and its output log is empty. No two calls ever get the same attempt of a job.
        """
        ...

    async def settle(
        self,
        job_id: JobId,
        event: Event,
        *,
        now: Millis,
        attempt: int | None = None,
        error: JobError | None = None,
        counts: bool = False,
        output: bytes | None = None,
    ) -> Job | None:
        """Raise any event but `take`. Gives the job after it, or None when it could not happen any more.

        It happens if the job's status is one of the event's sources and, where `attempt` is given, if that is the
        job's attempt. `release` keeps the job's sequence, so it is first in line again; with `counts` one failure is
        added. `retry` gives a new sequence and `created_at`, sets `failures` to 0, forgets error and output, and moves
        `queued_until` and `expires_at` by as much; it is refused (None) for a job that is not durable. A terminal event
        sets `finished_at`, `error` and `output`; the request's body and `s3_config` are dropped then unless
        `policy.is_body_needed`, and a durable job with a webhook has a delivery from then on, which is due at once.
        `retry` takes that back.
        """
        ...

    async def purge(
        self, endpoint: EndpointId, owner: Owner, now: Millis, error: JobError
    ) -> Sequence[Job]:
        """Cancel all of an owner's jobs that are IN_QUEUE; gives outlines. A job is purged or taken, never both."""
        ...

    async def due(self, now: Millis, limit: int) -> Sequence[Job]:
        """Outlines of up to `limit` unfinished jobs whose `policy.deadline` is not after `now`, earliest first."""
        ...

    async def forget(self, now: Millis, limit: int) -> int:
        """Drop up to `limit` terminal jobs whose retention has ended, and whose deliveries have; gives how many.

        Interactive jobs that have ended are also dropped without this, the oldest end first, where a store has more
        of them than it keeps: their rate must not decide how much memory they take.
        """
        ...

    async def limit_life(self, job_id: JobId, moment: Millis) -> Job | None:
        """Let a durable job's life end then: an unfinished one gets this `expires_at`, a finished one's retention ends.

        Gives the job after it, or None when there is no such job.
        """
        ...

    async def deliveries(
        self, now: Millis, limit: int, besides: Collection[str] = ()
    ) -> Sequence[Delivery]:
        """Up to `limit` deliveries that are due, earliest first, with outlines of their jobs.

        Those to the receivers in `besides` are left out. They stay until `tried` says otherwise.
        """
        ...

    async def tried(self, delivery: Delivery, again_at: Millis | None) -> None:
        """A delivery was tried: again at that moment, with one more in `tries`, or never again.

        Late is harmless: it has no effect once this delivery is over, was tried by somebody else or was taken back.
        """
        ...

    async def append(self, job_id: JobId, attempt: int, outputs: Sequence[bytes]) -> int | None:
        """Add to a durable job's output log while that attempt is IN_PROGRESS; gives the cursor after it, else None."""
        ...

    async def read(self, job_id: JobId, cursor: int, limit: int) -> tuple[Sequence[bytes], int]:
        """Up to `limit` outputs from `cursor` (0 is the first of the current attempt) and the cursor behind them.

        Reading changes nothing: any number of readers, each with a cursor of its own.
        """
        ...

    async def look(
        self, endpoint: EndpointId, owner: Owner, job_id: JobId, cursor: int | None, limit: int
    ) -> tuple[Job, Sequence[bytes], int] | None:
        """Return what `get` and `read` return, both of one moment; None as `get`.

        So the outputs belong to the attempt and the status that the job has. `cursor` None is the job's `drained`. The
        limit applies to an unfinished job only: of one that has ended, all outputs behind the cursor are returned.
        """
        ...

    async def consume(self, job_id: JobId, attempt: int, cursor: int) -> None:
        """Note that a client has taken this attempt's outputs up to `cursor`. Never goes back."""
        ...

    async def counts(self, endpoint: EndpointId) -> Counts:
        """How many jobs stand where. Of those that have ended, the durable ones count since the store was made."""
        ...

    def ahead(self, job: Job) -> int:
        """How many queued jobs will be handed out before this one. A hint for people: it may be a moment old."""
        ...


class Signal(Protocol):
    """Tells that something may have changed. A hint only: losing one costs time, never correctness."""

    def wake(self, key: str) -> None:
        """Something about `key` changed. Everyone who waits for it goes on."""
        ...

    async def wait(self, key: str, seconds: float | None) -> bool:
        """Wait until `key` is woken (true), also if that happened since the last wait on it, or so many seconds."""
        ...
