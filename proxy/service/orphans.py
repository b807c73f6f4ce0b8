"""Orphans: durable jobs that were running when this proxy was started. Their workers have one lease
to resume them.
"""

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Sequence
from functools import partial
from typing import TypeAlias

import structlog

from proxy.jobs.model import Ids, Job, JobId, WorkerId
from proxy.service.background import insist
from proxy.service.clock import Clock
from proxy.service.durable import DurableRuns
from proxy.service.fleet import Fleet
from proxy.service.job_turns import JobTurns
from proxy.service.ports import WorkerPort
from proxy.service.worker import Worker
from proxy.store.base import Adopted, JobStore
from proxy.store.errors import StoreError

log = structlog.get_logger()

PAGE_ELEMENTS = 1_000

Collect: TypeAlias = Callable[[Sequence[bytes]], Awaitable[None]]
"""Takes the next elements of an output log."""


class Orphans:
    """The runs that no connected worker has resumed yet."""

    def __init__(
        self, store: JobStore, runs: DurableRuns, fleet: Fleet, ids: Ids, clock: Clock
    ) -> None:
        self._store = store
        self._runs = runs
        self._fleet = fleet
        self._clock = clock
        # The number that adopted runs get: each is adopted at most once in the life of a process.
        # An adoption whose result was lost can be repeated.
        self._number = ids.run()
        self._jobs: dict[JobId, Job] = {}
        # A worker that reconnects can ask for a run again before the store has answered.
        self._turns = JobTurns()
        # The event loop's time when their lease began.
        self._since = 0.0

    def __len__(self) -> int:
        return len(self._jobs)

    def __contains__(self, job_id: JobId) -> bool:
        return job_id in self._jobs

    def of(self, worker: WorkerId) -> list[JobId]:
        """Return the jobs whose runs this worker had."""
        return [job.id for job in self._jobs.values() if job.worker == worker]

    def find(self, jobs: Iterable[Job]) -> None:
        """Set the jobs that were running when the store was opened."""
        self._jobs = {job.id: job for job in jobs}

    async def adopt(
        self, worker: Worker, port: WorkerPort, job_id: JobId, attempt: int, sent: int | None
    ) -> bool:
        """Let a worker resume a run, if no output of it is lost.

        `sent`: the number of frames that it has sent, all of which must be in the store; or None if
        it sends again what the store lacks, and waits until the store answers. If some output is
        lost, the run ends. Returns False if the worker has to stop the run. Raises `StoreGoneError`
        if `sent` is None.
        """
        async with self._turns.alone(job_id):
            hold = worker.holds.get(job_id)
            if hold is not None and hold.attempt == attempt:
                # An earlier connection of the worker has listed the run too.
                return True
            job = self._jobs.get(job_id)
            if job is None or job.attempt != attempt or job.endpoint != worker.endpoint:
                return False
            write = partial(self._adopt, job)
            adopted = await self._take_over(job, worker, write, waits=sent is None)
            if adopted is None:
                return False
            if sent is not None and adopted.cursor != sent:
                self._end(adopted.job)
                return False
            self._resume(adopted, worker, port, received=adopted.cursor)
            return True

    async def claim(
        self, worker: Worker, port: WorkerPort, job_id: JobId, collect: Collect, *, waits: bool
    ) -> Job | None:
        """Let a worker resume the run that it had; return its job, or None if it had none.

        For workers that list their jobs but not the output that they have sent: `collect` gets the
        output log, page by page. `waits`: until the store answers; else the result is also None if
        the store does not answer now. Raises `StoreGoneError` if `waits`.
        """
        async with self._turns.alone(job_id):
            job = self._jobs.get(job_id)
            if job is None or job.worker != worker.id:
                return None
            position = 0

            async def read_and_adopt() -> Adopted | None:
                nonlocal position
                has_more = True
                while has_more:
                    page, _ = await self._store.read(job_id, position, PAGE_ELEMENTS)
                    await collect(page)
                    position += len(page)
                    has_more = len(page) == PAGE_ELEMENTS
                return await self._adopt(job)

            adopted = await self._take_over(job, worker, read_and_adopt, waits=waits)
            if adopted is None:
                return None
            self._resume(adopted, worker, port)
            return adopted.job

    def restart_lease(self, now: float) -> None:
        """Start the lease again in which their workers have to return."""
        self._since = now

    def end_lease(self, now: float, lease: float) -> None:
        """End the orphans whose workers have not returned within the lease."""
        if now - self._since <= lease:
            return
        jobs = self._jobs
        self._jobs = {}
        for job in jobs.values():
            self._end(job)

    def _end(self, job: Job) -> None:
        self._runs.orphaned(job, (job.run, self._number))

    async def _adopt(self, job: Job) -> Adopted | None:
        return await self._store.adopt(job.id, job.attempt, self._number, self._clock.now())

    async def _take_over(
        self,
        job: Job,
        worker: Worker,
        write: Callable[[], Awaitable[Adopted | None]],
        *,
        waits: bool,
    ) -> Adopted | None:
        """Give a run a new number with `write`. The caller holds it in the same turn of the event
        loop, so that a cancellation that is committed later finds it.

        None if the run does not go on: the list was made at the start, and only the store knows.
        Also if the store does not answer now, unless `waits`; the run then remains an orphan.
        """
        # Its lease does not end while the store is asked.
        del self._jobs[job.id]
        is_answered = False
        try:
            adopted = await (insist(write) if waits else write())
            is_answered = True
        except StoreError:
            if waits:
                raise
            return None
        finally:
            if not is_answered:
                self._jobs[job.id] = job
        if adopted is None or self._runs.has_ended(adopted.job):
            return None
        if self._fleet.get(worker.id) is not worker:
            # It has left in the meantime.
            self._end(adopted.job)
            return None
        return adopted

    def _resume(
        self, adopted: Adopted, worker: Worker, port: WorkerPort, *, received: int = 0
    ) -> None:
        job = adopted.job
        recording = self._runs.record(job, adopted.cursor)
        worker.hold(job, recording, since=asyncio.get_running_loop().time(), received=received)
        recording.begin(job.attempt, port)
        log.info("run.adopted", job=job.id, attempt=job.attempt, worker=worker.id)
