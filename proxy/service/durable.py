"""Durable jobs: what clients of the queue API do with them, from submission to retry and purge."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from proxy.jobs.ids import Ids
from proxy.jobs.lifecycle import Event, Status
from proxy.jobs.model import Input, Job, JobError, JobId, Millis, Owner, Submission
from proxy.service.admission import Admission
from proxy.service.clock import Clock
from proxy.service.dispatch import Dispatch
from proxy.service.endings import RunEndings
from proxy.service.endpoints import Endpoint
from proxy.service.events import JobEvents
from proxy.service.fleet import Fleet
from proxy.service.reason import reason
from proxy.service.recorder import Recorder
from proxy.store.base import JobStore

CANCELLED = JobError("job_cancelled", "The job was cancelled.")
RETENTION = Millis(30 * 60_000)
# The least retention of a job that was submitted with `runsync`.
SYNC_RETENTION = Millis(60_000)
TTL = Millis(24 * 3600_000)
# Elements in one answer about an unfinished job; the answer about a finished job contains all of
# them.
PAGE_ELEMENTS = 1_000
ALL_ELEMENTS = 1_000_000


@dataclass(frozen=True, slots=True)
class JobRequest:
    """The content and the policy of a new job. `sync_wait`: the client waits for its end this long
    (`runsync`).
    """

    input: bytes
    execution_timeout: Millis | None = None
    ttl: Millis = TTL
    low_priority: bool = False
    webhook: str | None = None
    s3_config: bytes | None = None
    sync_wait: Millis | None = None


class NotRetriableError(Exception):
    """The job cannot be retried in its present status."""


@dataclass(slots=True)
class _Consumers:
    """The clients that consume the output of one job, one at a time."""

    lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    clients: int = 0


class DurableJobs:
    """The operations of clients on their jobs. A job of another owner is treated like an unknown
    one.
    """

    def __init__(
        self,
        store: JobStore,
        fleet: Fleet,
        dispatch: Dispatch,
        runs: RunEndings,
        recorder: Recorder,
        events: JobEvents,
        admission: Admission,
        clock: Clock,
        ids: Ids,
    ) -> None:
        self._store = store
        self._fleet = fleet
        self._dispatch = dispatch
        self._runs = runs
        self._recorder = recorder
        self._events = events
        self._admission = admission
        self._clock = clock
        self._ids = ids
        self._consumers: dict[JobId, _Consumers] = {}
        self.is_over = False
        """True once the proxy shuts down: no call waits any longer."""

    async def submit(self, endpoint: Endpoint, owner: Owner, order: JobRequest) -> Job:
        """Put a job into the queue. It is in the store when this returns; the returned job omits
        the request body.

        Raises the errors of `Admission.check`, or the store's `StoreFullError`.
        """
        await self._admission.check(endpoint)
        now = self._clock.now()
        retention = RETENTION if order.sync_wait is None else max(SYNC_RETENTION, order.sync_wait)
        submission = Submission(
            id=self._ids.durable_job(is_sync=order.sync_wait is not None),
            endpoint=endpoint.id,
            owner=owner,
            work=Input(order.input),
            durable=True,
            light=False,
            low_priority=order.low_priority,
            queued_until=None,
            expires_at=Millis(now + order.ttl),
            execution_timeout=order.execution_timeout or endpoint.execution_timeout,
            retention=Millis(retention),
            webhook=order.webhook,
            s3_config=order.s3_config,
        )
        job = await self._store.submit(submission, now)
        self._dispatch.wake(endpoint.id)
        return job.without_body()

    async def get(self, endpoint: Endpoint, owner: Owner, job_id: str) -> Job | None:
        """Return the job, or None if this owner has no such job on this endpoint."""
        return await self._store.get(endpoint.id, owner, JobId(job_id))

    async def wait_end(
        self, endpoint: Endpoint, owner: Owner, job_id: str, seconds: float
    ) -> Job | None:
        """Wait up to `seconds` for the job to end; return its last state."""
        deadline = asyncio.get_running_loop().time() + seconds
        with self._events.subscribe(JobId(job_id)) as subscription:
            while True:
                job = await self.get(endpoint, owner, job_id)
                left = deadline - asyncio.get_running_loop().time()
                if job is None or job.is_terminal or left <= 0 or self.is_over:
                    return job
                await subscription.wait(left)

    def let_go(self) -> None:
        """Answer all waiting calls with the present state: the proxy shuts down, and the jobs
        continue without it.
        """
        self.is_over = True
        self._events.notify_all()

    async def outputs(self, job: Job) -> tuple[Job, Sequence[bytes]] | None:
        """Return the job as it is now with all elements of its output log, both of one moment.

        An element is a JSON object with `output`, and `metrics` if there are any. None: the job no
        longer exists.
        """
        found = await self._store.look(job.endpoint, job.submission.owner, job.id, 0, ALL_ELEMENTS)
        return None if found is None else found[:2]

    async def read(
        self, endpoint: Endpoint, owner: Owner, job_id: str, after: int | None, seconds: float
    ) -> tuple[Job, Sequence[bytes], int] | None:
        """Wait for elements after the first `after`, or for the job's end; return job, elements and
        the next cursor.

        `after` None: after those that a client has consumed. Another run can begin during the wait,
        with a log of its own, so the job and its log are always read together. None: this owner has
        no such job.
        """
        deadline = asyncio.get_running_loop().time() + seconds
        with self._events.subscribe(JobId(job_id)) as subscription:
            while True:
                found = await self._store.look(
                    endpoint.id, owner, JobId(job_id), after, PAGE_ELEMENTS
                )
                if found is None:
                    return None
                job, elements, _ = found
                left = deadline - asyncio.get_running_loop().time()
                if elements or job.is_terminal or left <= 0 or self.is_over:
                    return found
                await subscription.wait(left)

    async def consume(
        self, endpoint: Endpoint, owner: Owner, job_id: str, seconds: float
    ) -> tuple[Job, Sequence[bytes]] | None:
        """Wait for elements that no client has consumed yet, and consume them.

        The cancellation of a job is reported once, with the remaining elements; then the result is
        None.
        """
        # Before the lock: waiting for it would reveal that the job exists and is being read.
        if await self.get(endpoint, owner, job_id) is None:
            return None
        async with self._alone(JobId(job_id)):
            found = await self.read(endpoint, owner, job_id, None, seconds)
            if found is None:
                return None
            job, elements, cursor = found
            if job.status is Status.CANCELLED:
                _, end = await self._store.read(job.id, 0, ALL_ELEMENTS)
                if job.consumed_cursor > end:
                    return None
                # Past the end: the cancellation has been reported.
                cursor = end + 1
            if cursor != job.consumed_cursor:
                await self._store.consume(job.id, job.attempt, cursor)
            return job, elements

    async def cancel(self, endpoint: Endpoint, owner: Owner, job_id: str) -> Job | None:
        """Cancel a job that is queued or running. One that has ended does not change."""
        job = await self.get(endpoint, owner, job_id)
        if job is None or job.is_terminal:
            return job
        await self._recorder.flush(job.id)
        ended = await self._store.settle(job.id, Event.CANCEL, now=self._clock.now())
        if ended is None:
            return await self.get(endpoint, owner, job_id)
        self._runs.withdraw([ended], CANCELLED)
        return ended

    async def retry(self, endpoint: Endpoint, owner: Owner, job_id: str) -> Job | None:
        """Put a failed job into the queue again. Raises `NotRetriableError` if its status does not
        allow it.
        """
        job = await self.get(endpoint, owner, job_id)
        if job is None:
            return None
        again = await self._store.settle(job.id, Event.RETRY, now=self._clock.now())
        if again is None:
            if not job.submission.durable:
                raise NotRetriableError("An OpenAI call cannot be retried. Send the request again.")
            raise NotRetriableError(
                f"Only a job that is FAILED or TIMED_OUT can be retried; this one is {job.status}."
            )
        self._events.notify(job.id)
        self._dispatch.wake(endpoint.id)
        return again

    async def purge(self, endpoint: Endpoint, owner: Owner) -> int:
        """Cancel all queued jobs of an owner; return their number."""
        purged = await self._store.purge(endpoint.id, owner, self._clock.now(), CANCELLED)
        self._runs.withdraw(purged, CANCELLED)
        return len(purged)

    async def limit_life(self, job: Job, ttl: Millis) -> Job | None:
        """Let the job expire `ttl` from now; return it, or None if it no longer exists."""
        return await self._store.limit_life(job.id, Millis(self._clock.now() + ttl))

    async def recent(
        self,
        endpoint: Endpoint,
        owner: Owner,
        *,
        before: int | None,
        limit: int,
        status: Status | None,
    ) -> Sequence[Job]:
        """Return outlines of the owner's jobs, newest first."""
        return await self._store.recent(
            endpoint.id, owner, before=before, limit=limit, status=status
        )

    def progress(self, job: Job) -> bytes | None:
        """Return the progress that its worker reported last, as JSON, if any."""
        return None if job.is_terminal else self._recorder.progress(job.id)

    def reason(self, job: Job) -> str:
        """Return the reason why the job is still queued; empty if it is not queued."""
        if job.status is not Status.IN_QUEUE:
            return ""
        return reason(job, self._fleet.of(job.endpoint), self._store.ahead(job), self._clock.now())

    @asynccontextmanager
    async def _alone(self, job_id: JobId) -> AsyncIterator[None]:
        """Let one client at a time consume the output of a job, so that no element is delivered
        twice.
        """
        consumers = self._consumers.setdefault(job_id, _Consumers())
        consumers.clients += 1
        try:
            async with consumers.lock:
                yield
        finally:
            consumers.clients -= 1
            if not consumers.clients:
                del self._consumers[job_id]
