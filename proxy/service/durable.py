"""Durable jobs, as their clients see them: put in line, looked at, read, ended, tried again."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from proxy.jobs.ids import Ids
from proxy.jobs.lifecycle import Event, Status
from proxy.jobs.model import Input, Job, JobError, JobId, Millis, Owner, Submission
from proxy.service.clock import Clock
from proxy.service.dispatch import Dispatch
from proxy.service.endings import RunEndings
from proxy.service.endpoints import Endpoint
from proxy.service.events import JobEvents
from proxy.service.fleet import Fleet
from proxy.service.interactive import InteractiveJobs
from proxy.service.reason import reason
from proxy.service.recorder import Recorder
from proxy.store.base import JobStore

CANCELLED = JobError("job_cancelled", "Somebody ended this job.")
RETENTION = Millis(30 * 60_000)  # of a result that is fetched later
SYNC_RETENTION = Millis(60_000)  # of one that is waited for, at least
TTL = Millis(24 * 3600_000)
PAGE = 1_000  # elements of one answer; a final answer has them all
END = 1_000_000


@dataclass(frozen=True, slots=True)
class JobRequest:
    """What a client wants done, and how."""

    input: bytes
    execution_timeout: Millis | None = None
    ttl: Millis = TTL
    low_priority: bool = False
    webhook: str | None = None
    s3_config: bytes | None = None
    sync_wait: Millis | None = None  # it is waited for: `runsync`


class NotRetriableError(Exception):
    """The job is in no state from which it could be tried again; the sentence says which."""


@dataclass(slots=True)
class _Consumers:
    """The clients that drain one job, in turn."""

    lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    clients: int = 0


class DurableJobs:
    """What clients do with their durable jobs. Another owner's job is none at all."""

    def __init__(
        self,
        store: JobStore,
        fleet: Fleet,
        dispatch: Dispatch,
        runs: RunEndings,
        recorder: Recorder,
        events: JobEvents,
        interactive: InteractiveJobs,
        clock: Clock,
        ids: Ids,
    ) -> None:
        self._store, self._fleet, self._dispatch, self._runs = store, fleet, dispatch, runs
        self._recorder, self._events, self._interactive, self._clock = (
            recorder,
            events,
            interactive,
            clock,
        )
        self._ids = ids
        self._consumers: dict[JobId, _Consumers] = {}
        self.is_over = False  # nobody waits here any more

    async def submit(self, endpoint: Endpoint, owner: Owner, order: JobRequest) -> Job:
        """Put a job in line; it is in the store when this returns. The answer has its body no more.

        Raises what `InteractiveJobs.check` does, or the store's `StoreFullError`.
        """
        await self._interactive.check(endpoint)
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
        """The job."""
        return await self._store.get(endpoint.id, owner, JobId(job_id))

    async def wait_end(
        self, endpoint: Endpoint, owner: Owner, job_id: str, seconds: float
    ) -> Job | None:
        """The job once it has ended, or as it is after so many seconds."""
        deadline = asyncio.get_running_loop().time() + seconds
        with self._events.subscribe(JobId(job_id)) as subscription:
            while True:
                job = await self.get(endpoint, owner, job_id)
                left = deadline - asyncio.get_running_loop().time()
                if job is None or job.is_terminal or left <= 0 or self.is_over:
                    return job
                await subscription.wait(left)

    def let_go(self) -> None:
        """Answer everyone who waits with what there is: the proxy shuts down, and their jobs go on without it."""
        self.is_over = True
        self._events.notify_all()

    async def outputs(self, job: Job) -> tuple[Job, Sequence[bytes]] | None:
        """Return the job as it is now with all elements of its output log, both of one moment.

        An element is a JSON object with `output`, and `metrics` if there are any. None: the job is forgotten.
        """
        found = await self._store.look(job.endpoint, job.submission.owner, job.id, 0, END)
        return None if found is None else found[:2]

    async def read(
        self, endpoint: Endpoint, owner: Owner, job_id: str, after: int | None, seconds: float
    ) -> tuple[Job, Sequence[bytes], int] | None:
        """Elements behind the first `after`, as soon as there are some or the job has ended, and the cursor then.

        `after` None: those that no client has drained yet. Another run may begin during the wait, with a log of its
        own: so the job and its log are always looked at together.
        """
        deadline = asyncio.get_running_loop().time() + seconds
        with self._events.subscribe(JobId(job_id)) as subscription:
            while True:
                found = await self._store.look(endpoint.id, owner, JobId(job_id), after, PAGE)
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
        """Elements that no client has drained yet. A cancelled job is told once with what is left, then gone (None)."""
        if await self.get(endpoint, owner, job_id) is None:
            return None  # before the lock: waiting for it would say that the job exists and that its owner reads it
        async with self._alone(JobId(job_id)):
            found = await self.read(endpoint, owner, job_id, None, seconds)
            if found is None:
                return None
            job, elements, cursor = found
            if job.status is Status.CANCELLED:
                _, end = await self._store.read(job.id, 0, END)
                if job.consumed_cursor > end:
                    return None
                cursor = end + 1  # past the end: that it was cancelled has been told
            if cursor != job.consumed_cursor:
                await self._store.consume(job.id, job.attempt, cursor)
            return job, elements

    async def cancel(self, endpoint: Endpoint, owner: Owner, job_id: str) -> Job | None:
        """End a job, wherever it stands. One that has ended stays as it is."""
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
        """Put a failed job in line again; `NotRetriableError` if it is none."""
        job = await self.get(endpoint, owner, job_id)
        if job is None:
            return None
        again = await self._store.settle(job.id, Event.RETRY, now=self._clock.now())
        if again is None:
            if not job.submission.durable:
                raise NotRetriableError(
                    "An OpenAI call cannot be retried: its client has its answer."
                )
            raise NotRetriableError(
                f"Only a job that is FAILED or TIMED_OUT can be retried; this one is {job.status}."
            )
        self._events.notify(job.id)
        self._dispatch.wake(endpoint.id)
        return again

    async def purge(self, endpoint: Endpoint, owner: Owner) -> int:
        """Cancel all of an owner's jobs that wait; gives how many."""
        purged = await self._store.purge(endpoint.id, owner, self._clock.now(), CANCELLED)
        self._runs.withdraw(purged, CANCELLED)
        return len(purged)

    async def limit_life(self, job: Job, ttl: Millis) -> Job | None:
        """Let the job's life end so long from now."""
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
        """The owner's jobs, newest first."""
        return await self._store.recent(
            endpoint.id, owner, before=before, limit=limit, status=status
        )

    def progress(self, job: Job) -> bytes | None:
        """What its worker last said of how far it is, as JSON."""
        return None if job.is_terminal else self._recorder.progress(job.id)

    def reason(self, job: Job) -> str:
        """Why it waits; empty when it does not."""
        if job.status is not Status.IN_QUEUE:
            return ""
        return reason(job, self._fleet.of(job.endpoint), self._store.ahead(job), self._clock.now())

    @asynccontextmanager
    async def _alone(self, job_id: JobId) -> AsyncIterator[None]:
        """One client drains a job at a time: no element goes to two."""
        drain = self._consumers.setdefault(job_id, _Consumers())
        drain.clients += 1
        try:
            async with drain.lock:
                yield
        finally:
            drain.clients -= 1
            if not drain.clients:
                del self._consumers[job_id]
