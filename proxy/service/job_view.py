"""The view of clients on jobs of both kinds, with the reason why a job is still queued.

A job of another owner is treated like an unknown one.
"""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import NamedTuple, TypeAlias

from proxy.jobs.lifecycle import Status
from proxy.jobs.model import Counts, Cursor, EndpointId, Job, JobId, JobState, Millis, Owner
from proxy.jobs.policy import LOW_PRIORITY_WAIT_MILLIS, yields
from proxy.service.clock import Clock
from proxy.service.endpoints import Endpoint
from proxy.service.events import JobEvents
from proxy.service.fleet import Fleet
from proxy.service.interactive import NEXT_IN_LINE, InteractiveJobs
from proxy.service.recorder import Recorder
from proxy.service.worker import Worker
from proxy.store.base import JobStore

# Elements in one page of output.
PAGE_ELEMENTS = 1_000
# Output up to this size is read without a reservation of memory. A response of this size fits into
# the buffer of its connection.
UNRESERVED_MAX_BYTES = 64 * 1024

Reserve: TypeAlias = Callable[[int], Awaitable[None]]
"""Reserves memory for output before it is read: the number of bytes that the caller has to hold in
all. It waits, or raises an error.
"""


class ReadLimits(NamedTuple):
    """The form of output for one caller: pages of `page_bytes`; with `whole`, all of the output at
    once if the job has ended.

    `reserve` is called before more than `page_bytes` are read. A page is larger only if it has a
    single element.
    """

    page_bytes: int
    whole: bool
    reserve: Reserve


class OutputPage(NamedTuple):
    """A job, a part of its output, and the cursor after that.

    `has_restarted`: the reader's attempt was lost, and this is the output of another one from its
    beginning.
    """

    job: Job
    elements: Sequence[bytes]
    cursor: Cursor
    has_restarted: bool


class JobView:
    """Reads jobs, and waits for their changes."""

    def __init__(
        self,
        store: JobStore,
        interactive: InteractiveJobs,
        recorder: Recorder,
        events: JobEvents,
        fleet: Fleet,
        clock: Clock,
    ) -> None:
        self._store = store
        self._interactive = interactive
        self._recorder = recorder
        self._events = events
        self._fleet = fleet
        self._clock = clock
        self.is_over = False
        """True once the proxy shuts down: no call waits any longer."""

    @property
    def is_durable(self) -> bool:
        """True if acknowledged durable jobs survive the end of the process."""
        return self._store.durable

    @property
    def is_store_gone(self) -> bool:
        """True once the store has failed for good: durable jobs cannot be read or changed."""
        return bool(self._store.gone)

    async def get(self, endpoint: Endpoint, owner: Owner, job_id: str) -> Job | None:
        """Return the job, or None if this owner has no such job on this endpoint."""
        call = self._interactive.get(endpoint.id, owner, JobId(job_id))
        # An unknown id and a job of another owner take the same path, and thus the same time.
        return call or await self._store.get(endpoint.id, owner, JobId(job_id))

    async def result(
        self, endpoint: EndpointId, owner: Owner, job_id: str, reserve: Reserve
    ) -> tuple[Job, Sequence[bytes]] | None:
        """Return the job with its output: `output`, or the elements of its log if it has none.

        An element is a JSON object with `output`, and `metrics` if there are any. A job that has
        not ended has neither. None if this owner has no such job.
        """
        call = self._interactive.get(endpoint, owner, JobId(job_id))
        if call is not None:
            return call, ()
        return await self._result(endpoint, owner, JobId(job_id), reserve)

    async def wait_end(
        self,
        endpoint: Endpoint,
        owner: Owner,
        job_id: str,
        seconds: float,
        reserve: Reserve,
        *,
        is_owned: bool = False,
    ) -> tuple[Job, Sequence[bytes]] | None:
        """Wait up to `seconds` for the job to end; return its last state as `result` does.

        `is_owned`: the job is certainly one of this owner, so that it need not be read before it
        has ended.
        """
        deadline = asyncio.get_running_loop().time() + seconds
        with self._events.subscribe(JobId(job_id), only_end=True) as subscription:
            if is_owned and not self.is_over and self._store.is_unfinished(JobId(job_id)):
                await subscription.wait(seconds)
            while True:
                found = await self.result(endpoint.id, owner, job_id, reserve)
                left = deadline - asyncio.get_running_loop().time()
                if found is None or found[0].is_terminal or left <= 0 or self.is_over:
                    return found
                await subscription.wait(left)

    def let_go(self) -> None:
        """Answer all waiting calls with the present state: the proxy shuts down, and the jobs
        continue without it.
        """
        self.is_over = True
        self._events.notify_all()

    async def read(
        self,
        endpoint: Endpoint,
        owner: Owner,
        job_id: str,
        after: Cursor | None,
        seconds: float,
        limits: ReadLimits,
    ) -> OutputPage | None:
        """Wait for elements after a cursor, or for the job's end, and give them to the client.

        The elements count as delivered, so the run is not repeated if it is lost. `after` None:
        after the elements that a client has consumed. The last page of a job is empty, or has all
        that was left. Returns None if this owner has no such job.
        """
        deadline = asyncio.get_running_loop().time() + seconds
        while True:
            left = deadline - asyncio.get_running_loop().time()
            page = await self.wait_output(endpoint, owner, job_id, after, left, limits)
            if page is None or not page.elements or page.job.is_terminal or page.job.delivered:
                return page
            # Read again: until now, the output can have been corrected, or the attempt lost.
            await self._store.deliver(page.job.id, page.job.attempt)

    async def wait_output(
        self,
        endpoint: Endpoint,
        owner: Owner,
        job_id: str,
        after: Cursor | None,
        seconds: float,
        limits: ReadLimits,
    ) -> OutputPage | None:
        """Wait like `read`, without giving the elements to the client.

        `after` None: after the elements that a client has consumed. Another run can begin during
        the wait, with a log of its own, so the job and its log are always read together.
        """
        deadline = asyncio.get_running_loop().time() + seconds
        has_restarted = False
        with self._events.subscribe(JobId(job_id)) as subscription:
            while True:
                position = None if after is None else after.position
                found = await self._look(endpoint.id, owner, JobId(job_id), position, limits)
                if found is None:
                    return None
                job, elements, following = found
                if after is not None and after.attempt != job.attempt:
                    is_lost = bool(after.attempt)
                    after = Cursor(job.attempt, 0 if is_lost else after.position)
                    if is_lost:
                        # The position belongs to the log of another run.
                        has_restarted = True
                        continue
                left = deadline - asyncio.get_running_loop().time()
                if elements or job.is_terminal or left <= 0 or self.is_over:
                    cursor = Cursor(job.attempt, following)
                    return OutputPage(job, elements, cursor, has_restarted)
                await subscription.wait(left)

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
        durable = await self._store.recent(
            endpoint.id, owner, before=before, limit=limit, status=status
        )
        calls = self._interactive.recent(
            endpoint.id, owner, before=before, limit=limit, status=status
        )
        return sorted([*durable, *calls], key=lambda job: -job.sequence)[:limit]

    async def counts(self, endpoint: EndpointId) -> Counts:
        """Return the number of jobs by status."""
        return await self._store.counts(endpoint) + self._interactive.counts(endpoint)

    def progress(self, job: Job) -> bytes | None:
        """Return the progress that its worker reported last, as JSON, if any."""
        recording = None if job.is_terminal else self._recorder.get(job.id)
        return None if recording is None else recording.progress

    def reason(self, job: JobState) -> str:
        """Return the reason why the job is still queued; empty if it is not queued."""
        if job.status is not Status.IN_QUEUE:
            return ""
        ahead = self._interactive.ahead(job)
        workers = self._fleet.of(job.endpoint)
        found = reason(job, workers, ahead, self._clock.now())
        return found + last_failure(self._fleet, job.endpoint)

    async def _look(
        self,
        endpoint: EndpointId,
        owner: Owner,
        job_id: JobId,
        cursor: int | None,
        limits: ReadLimits,
    ) -> tuple[Job, Sequence[bytes], int] | None:
        """Return a job, a part of its output, and the cursor after that, all from one moment.

        An interactive job has no output here, and neither has a queued job: the output of a run
        that was lost stays in the store until the next run begins.
        """
        if (call := self._interactive.get(endpoint, owner, job_id)) is not None:
            return call, (), cursor or 0
        max_bytes = limits.page_bytes
        while True:
            page = await self._store.look(
                endpoint, owner, job_id, cursor, limit=PAGE_ELEMENTS, max_bytes=max_bytes
            )
            if page is None:
                return None
            job, elements, following, needed = page
            start = following - len(elements)
            if job.status is Status.IN_QUEUE:
                return job, (), start
            has_more = bool(needed) or len(elements) == PAGE_ELEMENTS
            if has_more and job.is_terminal and limits.whole:
                found = await self._result(endpoint, owner, job_id, limits.reserve, start)
                return None if found is None else (*found, start + len(found[1]))
            if elements or not needed:
                return job, elements, following
            await limits.reserve(needed)
            max_bytes = needed

    async def _result(
        self,
        endpoint: EndpointId,
        owner: Owner,
        job_id: JobId,
        reserve: Reserve,
        cursor: int | None = None,
    ) -> tuple[Job, Sequence[bytes]] | None:
        """Return `JobStore.result`, with memory reserved before it is read."""
        reserved = UNRESERVED_MAX_BYTES
        while True:
            found = await self._store.result(
                endpoint, owner, job_id, max_bytes=reserved, cursor=cursor
            )
            if found is None:
                return None
            job, outputs, size = found
            if size <= reserved:
                return job, outputs
            await reserve(size)
            reserved = size


def last_failure(fleet: Fleet, endpoint: EndpointId) -> str:
    """Return a further sentence about the worker that has failed last, while none is ready."""
    if fleet.is_ready(endpoint) or not fleet.unhealthy:
        return ""
    unhealthy = fleet.unhealthy.reasons(endpoint, asyncio.get_running_loop().time())
    return f" Last failure: {unhealthy[-1]}." if unhealthy else ""


def reason(job: JobState, workers: Sequence[Worker], ahead: int, now: Millis) -> str:
    """Return the reason: no workers, no ready workers, jobs before it, or no free slot.

    `ahead`: the number of jobs before it in the queue.
    """
    if missing := without_workers(workers, now):
        return missing
    later = (
        " Jobs of normal priority go first until it has waited for "
        f"{LOW_PRIORITY_WAIT_MILLIS // 1000} s."
        if yields(job, now)
        else ""
    )
    if ahead:
        return f"Behind {_count(ahead, 'job')} in the queue.{later}"
    if limit := without_slots(workers, light=job.submission.light):
        return f"{limit}{later}"
    return NEXT_IN_LINE


def without_workers(workers: Sequence[Worker], now: Millis) -> str:
    """Return the reason why no job can run, or an empty text if a worker is ready."""
    if not workers:
        return "No worker is connected."
    if any(worker.is_ready for worker in workers):
        return ""
    text = f"{_count(len(workers), 'worker')} connected, none of them ready yet"
    stage = next((worker.stage for worker in workers if worker.stage is not None), None)
    if stage is None:
        return f"{text}."
    which = "it" if len(workers) == 1 else "one"
    return f"{text}: {which} is loading ({stage.text}, {(now - stage.since) // 1000} s)."


def without_slots(workers: Sequence[Worker], *, light: bool) -> str:
    """Return the reason if all slots of the ready workers are taken, or an empty text."""
    limit = _limit([worker for worker in workers if worker.is_ready], light=light)
    return f"Held by a limit: {limit}." if limit else ""


def _limit(ready: Sequence[Worker], *, light: bool) -> str:
    """Return the limit that is reached, or an empty text. A Runpod worker can have a free slot
    between two polls.
    """
    if all(worker.is_full for worker in ready):
        return f"the engine of {_count(len(ready), 'worker')} takes no further job at present"
    loads = [worker.load(light=light) for worker in ready]
    taken, slots = sum(load.taken for load in loads), sum(load.slots for load in loads)
    if not slots or taken < slots:
        return ""
    name, whose = "light slot" if light else "slot", _count(len(ready), "worker")
    return (
        f"the only {name} of {whose} is taken"
        if slots == 1
        else f"all {slots} {name}s of {whose} are taken"
    )


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'s' if number > 1 else ''}"
