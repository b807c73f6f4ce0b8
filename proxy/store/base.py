"""The contract of a job store.

These docstrings are the specification. `tests/contract/` checks every implementation against it.
"""

from collections.abc import Collection, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from typing import NamedTuple, Protocol

from proxy.jobs.lifecycle import Event, Status
from proxy.jobs.model import (
    Counts,
    Delivery,
    EndpointId,
    Job,
    JobError,
    JobId,
    JobState,
    Millis,
    Owner,
    Receiver,
    Submission,
    WorkerId,
)
from proxy.jobs.served_model import Model
from proxy.store.outputs import LogPage, StoredResult


class Adopted(NamedTuple):
    """A run that goes on: an outline of its job, and the cursor after its last output."""

    job: Job
    cursor: int


class JobStore(Protocol):
    """A store of durable jobs. It orders their queues, and only it changes their status.

    Interactive jobs are records of the service (`service.interactive`) and never in a store.

    Every change of a status is one conditional write, taken from the lifecycle table: it either
    takes effect completely, or the returned None says that the job was no longer in a suitable
    status. Time and random numbers are always arguments: a store has no clock. A write is
    acknowledged when the method returns; from then on it survives every failure that the store is
    specified to survive. Methods are safe to call concurrently. If a caller is cancelled, its call
    takes effect either completely or not at all.

    Every write about a run carries its fencing token: `run`, a random number that is new at each
    take and at each adoption. A holder of an earlier number can change nothing, even if its attempt
    is the current one. Readers name the attempt: an adopted run continues the same output.

    A store of limited capacity keeps space for the jobs that it already has: `submit` is rejected
    long before the other writes fail. If the space is exhausted nevertheless, any method that
    writes may raise `StoreFullError`. Any asynchronous method may raise `StoreBusyError` or
    `StoreGoneError`. `take` then returns no jobs instead.
    """

    durable: bool
    """True if acknowledged writes survive the end of the process."""

    @property
    def gone(self) -> str:
        """The reason why the open store has failed for good; empty while it has not.

        From then on, every asynchronous method raises `StoreGoneError` at once.
        """
        ...

    async def until_gone(self) -> str:
        """Wait until the open store has failed for good; return the reason."""
        ...

    def open(self) -> AbstractAsyncContextManager[None]:
        """Open the store, once, before any other call. Leaving the context closes it.

        Raises `StoreUnavailableError`.
        """
        ...

    async def running(self) -> Sequence[Job]:
        """Return outlines of all jobs that are IN_PROGRESS.

        The proxy calls this when it starts, before the workers of these jobs have reconnected.
        """
        ...

    async def has_secrets(self) -> bool:
        """Return True if jobs or pending deliveries need values that were encrypted."""
        ...

    async def submit(self, submission: Submission, now: Millis) -> Job:
        """Append a new job to the queue of its endpoint, IN_QUEUE and with attempt 0.

        Idempotent: if a job with this id exists, it is returned unchanged. If a job of this
        endpoint and owner has a `key` with the same name, an outline of it is returned; if the
        digest is another one, the call raises `OtherSubmissionError`. A key exists as long as its
        job. Raises `StoreFullError`, without any effect, if the job does not fit.
        """
        ...

    async def get(self, endpoint: EndpointId, owner: Owner, job_id: JobId) -> Job | None:
        """Return an outline of a job.

        None if this owner has no job with this id on this endpoint: an unknown id and a job of
        another owner cannot be distinguished.
        """
        ...

    async def find(self, job_id: JobId) -> Job | None:
        """Return a job by its id alone, for internal use; never to answer a client."""
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
        """Return outlines of an owner's jobs, by descending sequence (newest first).

        `before` continues a listing: pass the smallest sequence of the previous page.
        """
        ...

    async def take(
        self,
        endpoint: EndpointId,
        worker: WorkerId,
        *,
        limit: int,
        light_limit: int,
        now: Millis,
        run: int,
    ) -> Sequence[Job]:
        """Hand out up to `limit` ordinary and `light_limit` light jobs to a worker.

        No other method hands out jobs. The result may be shorter if the bodies are large, but it
        has at least one job if any is available: call again for more.

        Order: normal before low priority, then by sequence. A job of low priority that was created
        `policy.LOW_PRIORITY_WAIT_MILLIS` ago or earlier counts as normal. Each returned job is
        IN_PROGRESS on this worker, its attempt is one higher than before, `taken_at` is `now`, its
        `run` is the given one, and its output log is empty and not delivered. All of them are taken
        in one write. No two calls ever return the same attempt of a job.

        `run`: a new random number (`Ids.run`), which the jobs of one call share.
        """
        ...

    async def settle(
        self,
        job_id: JobId,
        event: Event,
        *,
        now: Millis,
        run: int | None = None,
        error: JobError | None = None,
        counts: bool = False,
        output: bytes | None = None,
        undelivered: bool = False,
    ) -> Job | None:
        """Apply any event except `take`; return the resulting job, or None if it did not apply.

        An event applies if the job's status is one of its sources and, where `run` is given, if
        that is the job's current run number. With `undelivered`, a `release` applies only if no
        output of the attempt has been delivered. No event changes `attempt` or `run`.

        - `release` keeps the job's sequence, so that it returns to the front of the queue. With
          `counts`, its `failures` grows by one.
        - `retry` assigns a new sequence and `created_at`, shifts `queued_until` and `expires_at` by
          the same amount, sets `failures` to 0, and deletes error, output and a pending delivery.
        - A terminal event sets `finished_at`, `error` and `output`. It drops the request body and
          `s3_config` unless `policy.is_body_needed`. A job with a webhook gets a delivery, due
          immediately.
        """
        ...

    async def purge(
        self,
        endpoint: EndpointId,
        owner: Owner,
        now: Millis,
        error: JobError,
        *,
        before: int,
        limit: int,
    ) -> Sequence[Job]:
        """Cancel up to `limit` jobs of an owner that are IN_QUEUE; return outlines of them.

        Only jobs with a sequence below `before`: pass a new sequence (`next_sequence`) for all jobs
        that are queued now. The result may be shorter than `limit`, but it has at least one job if
        any is left: call again for more. All of them are cancelled in one write. A job is either
        purged or taken, never both. The number of other jobs does not affect the cost.
        """
        ...

    async def due(self, now: Millis, limit: int) -> Sequence[Job]:
        """Return outlines of up to `limit` unfinished jobs whose `policy.deadline` has passed.

        A deadline equal to `now` has passed. The earliest deadline comes first.
        """
        ...

    async def forget(self, now: Millis, limit: int) -> int:
        """Delete up to `limit` terminal jobs with expired retention and no pending delivery.

        Returns the number of deleted jobs.
        """
        ...

    async def limit_life(self, job_id: JobId, moment: Millis) -> Job | None:
        """End the life of a job at `moment`; return the job, or None if there is none.

        An unfinished job gets this moment as `expires_at`; the retention of a finished job is set
        to end then.
        """
        ...

    async def deliveries(
        self,
        now: Millis,
        limit: int,
        besides: Collection[Receiver] = (),
        besides_owners: Collection[Owner] = (),
    ) -> Sequence[Delivery]:
        """Return up to `limit` due webhook deliveries, earliest first, with outlines of their jobs.

        Deliveries to the receivers in `besides`, and those of `besides_owners`, are skipped. Their
        number does not affect the cost. A delivery remains due until `tried` is called.
        """
        ...

    async def tried(self, delivery: Delivery, again_at: Millis | None) -> None:
        """Record a try of a delivery: `tries` grows by one, and the next is due at `again_at`.

        None ends the delivery. A late call is harmless: it has no effect if this delivery has
        ended, was tried by another caller, or was deleted by a retry.
        """
        ...

    async def adopt(self, job_id: JobId, attempt: int, run: int, now: Millis) -> Adopted | None:
        """Give a run that its worker has resumed a new number.

        `run`: a new random number. From then on, `append` and `settle` reject the earlier one. The
        attempt, its output log and its readers are not affected. A `taken_at` after `now` becomes
        `now`: the clock was set back, and the run would have no time limit until then. None,
        without any effect, if this attempt is not IN_PROGRESS.
        """
        ...

    async def hasten(self, latest: Millis, now: Millis) -> int:
        """Make all deliveries due at `now` that are due after `latest`; return their number."""
        ...

    async def newest(self, until: Millis) -> Millis | None:
        """Return the latest time up to `until` at which any job was created, taken or ended.

        None if there is none.
        """
        ...

    async def served_models(self) -> Mapping[EndpointId, Sequence[Model]]:
        """Return the models that were set last for each endpoint, in their order.

        The proxy calls this when it starts. They are not jobs, and no job depends on them.
        """
        ...

    async def set_served_models(self, endpoint: EndpointId, models: Sequence[Model]) -> None:
        """Replace the models of an endpoint, all in one write."""
        ...

    async def append(
        self, job_id: JobId, run: int, outputs: Sequence[bytes], start: int | None = None
    ) -> int | None:
        """Append to a job's output log while this run is IN_PROGRESS.

        `start`: the cursor of the first output. It makes the call idempotent: outputs that the log
        has already are not appended again, for example after a commit whose result was lost.

        Returns the cursor after the appended outputs, or None if the run has ended or has another
        number by now. Raises `ValueError` if outputs before `start` are missing.
        """
        ...

    async def rewrite(self, job_id: JobId, run: int, start: int, outputs: Sequence[bytes]) -> bool:
        """Replace the outputs of a run that is IN_PROGRESS from the cursor `start` on.

        Returns False, and changes nothing, if it is not IN_PROGRESS, or if any of its output
        was delivered. A delivery and a rewrite exclude each other. `start` is at most the cursor
        after the last output.
        """
        ...

    async def read(self, job_id: JobId, cursor: int, limit: int) -> tuple[Sequence[bytes], int]:
        """Return up to `limit` outputs from `cursor` on, and the cursor after them.

        Cursor 0 is the first output of the current attempt. Reading changes nothing, so any number
        of readers can read with independent cursors.
        """
        ...

    async def look(
        self,
        endpoint: EndpointId,
        owner: Owner,
        job_id: JobId,
        cursor: int | None,
        *,
        limit: int,
        max_bytes: int,
    ) -> LogPage | None:
        """Return a page of a job's outputs from `cursor` on; None as in `get`.

        The page has up to `limit` outputs and `max_bytes` bytes. It ends before an output that does
        not fit, even if that is the first; `needed` is the size of that output. Job and outputs are
        from one snapshot, so the outputs belong to the job's attempt and status. A `cursor` of None
        means the job's `consumed_cursor`.
        """
        ...

    async def result(
        self,
        endpoint: EndpointId,
        owner: Owner,
        job_id: JobId,
        *,
        max_bytes: int,
        cursor: int | None = None,
    ) -> StoredResult | None:
        """Return a job with its `output`, or with all outputs of its log if it has no `output`;
        None as in `get`.

        With a `cursor`, it is the job with the outputs of its log from there on. More than
        `max_bytes` are not returned, but `size` is their number. A job that has not ended has no
        result, of 0 bytes. All is from one snapshot.
        """
        ...

    async def consume(self, job_id: JobId, attempt: int, cursor: int) -> bool:
        """Record that a client has consumed this attempt's outputs up to `cursor`.

        The recorded cursor never decreases, and the outputs count as delivered. Returns False, and
        changes nothing, if the attempt was lost: the job is IN_QUEUE or has a later attempt. The
        outputs must not be given to the client then.
        """
        ...

    async def deliver(self, job_id: JobId, attempt: int) -> bool:
        """Record that outputs of this attempt are about to be given to a client.

        Returns False, and changes nothing, as `consume` does. A delivery and a `release` with
        `undelivered` exclude each other.
        """
        ...

    async def counts(self, endpoint: EndpointId) -> Counts:
        """Return the number of jobs by status.

        Jobs that have ended are counted since the store was created.
        """
        ...

    def ahead(self, job: JobState) -> int:
        """Return the number of jobs of this store that will be handed out before this one.

        The job may be one of another queue, such as an interactive job: its position is that of its
        sequence. The value is a hint and may be slightly out of date.
        """
        ...

    def all_queued(self, endpoint: EndpointId) -> int:
        """Return the number of all queued jobs, as a hint like `ahead`."""
        ...

    def queued(self, endpoint: EndpointId, *, light: bool, before: int | None = None) -> int:
        """Return the number of queued jobs that need this kind of credit.

        `before`: only those that a job of normal priority with this sequence has to wait for. The
        value is a hint, like `ahead`: a take may return fewer jobs, or more.
        """
        ...

    def is_unfinished(self, job_id: JobId) -> bool:
        """Return True if a job has certainly not ended; False says nothing. Does not wait."""
        ...

    def next_sequence(self) -> int:
        """Return a new sequence for a job of another queue of this process.

        It is greater than those of all jobs that were submitted or retried through this store
        before, and less than those of all later ones.
        """
        ...
