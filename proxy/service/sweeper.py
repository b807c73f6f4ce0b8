"""Periodic work: expired leases, deadlines, retentions and alarms."""

import asyncio

from proxy.jobs.model import Job, Millis
from proxy.jobs.policy import overdue
from proxy.service.clock import Clock
from proxy.service.endings import RunEndings
from proxy.service.fleet import Fleet
from proxy.service.mailbox import Mailboxes
from proxy.service.orphans import Orphans
from proxy.service.stuck import StuckWorkers
from proxy.store.base import JobStore

TICK_SECONDS = 0.25
# Jobs in one request to the store. A round repeats the request until no job is due.
BATCH_JOBS = 1_000


class Sweeper:
    """Carries out what is due, a few times a second."""

    def __init__(
        self,
        store: JobStore,
        fleet: Fleet,
        mailboxes: Mailboxes,
        runs: RunEndings,
        orphans: Orphans,
        stuck: StuckWorkers,
        clock: Clock,
        lease: float,
    ) -> None:
        self._store = store
        self._fleet = fleet
        self._mailboxes = mailboxes
        self._runs = runs
        self._orphans = orphans
        self._stuck = stuck
        self._clock = clock
        self._lease = lease

    async def serve(self) -> None:
        """Run until cancelled."""
        began = asyncio.get_running_loop().time()
        while True:
            await asyncio.sleep(TICK_SECONDS)
            if self._orphans and asyncio.get_running_loop().time() - began > self._lease:
                await self._orphans.end()
            self._mailboxes.tick(asyncio.get_running_loop().time())
            self._stuck.end(asyncio.get_running_loop().time())
            await self.end_leases()
            await self.end_overdue()

    async def serve_forgetting(self) -> None:
        """Forget expired jobs until cancelled. A task of its own: the other duties must not wait
        for the disk.
        """
        while True:
            await asyncio.sleep(TICK_SECONDS)
            await self.forget()

    async def forget(self) -> None:
        """Forget all jobs whose retention has ended. Half of the time is left to other tasks."""
        clock = asyncio.get_running_loop().time
        while True:
            began = clock()
            if await self._store.forget(self._clock.now(), BATCH_JOBS) < BATCH_JOBS:
                return
            await asyncio.sleep(clock() - began)

    async def end_leases(self) -> None:
        """Remove the workers whose lease has expired or whose process has ended."""
        now = asyncio.get_running_loop().time()
        for worker in self._fleet:
            if worker.has_exited:
                await self._runs.remove_worker(worker, "its process ended")
            elif now - worker.seen > self._lease and (
                worker.port is None or worker.holds or worker.slots
            ):
                is_gone = worker.port is None
                why = "its connection was lost" if is_gone else f"silent for {self._lease:g} s"
                await self._runs.remove_worker(worker, why)

    async def end_overdue(self) -> None:
        """End the jobs whose deadline has passed."""
        now = self._clock.now()
        has_more = True
        while has_more:
            due = await self._store.due(now, BATCH_JOBS)
            ended = [await self._end_overdue(job, now) for job in due]
            # A job that could not be ended is due again.
            has_more = len(due) == BATCH_JOBS and any(ended)
            await asyncio.sleep(0)

    async def _end_overdue(self, job: Job, now: Millis) -> bool:
        verdict = overdue(job, now)
        if verdict is None or verdict.error is None:
            return False
        ended = await self._store.settle(
            job.id, verdict.event, now=now, attempt=job.attempt, error=verdict.error
        )
        if ended is not None:
            self._runs.withdraw([ended], verdict.error)
        return ended is not None
