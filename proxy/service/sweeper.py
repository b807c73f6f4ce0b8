"""What happens because time has passed: leases, deadlines, retentions, alarms."""

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
BATCH = 1_000  # of one kind in one question to the store; a round asks until nothing is due


class Sweeper:
    """Looks at the clock a few times a second."""

    def __init__(
        self,
        store: JobStore,
        fleet: Fleet,
        output: Mailboxes,
        runs: RunEndings,
        orphans: Orphans,
        stuck: StuckWorkers,
        clock: Clock,
        lease: float,
    ) -> None:
        self._store, self._fleet, self._output, self._runs, self._clock = (
            store,
            fleet,
            output,
            runs,
            clock,
        )
        self._orphans, self._stuck, self._lease = orphans, stuck, lease

    async def serve(self) -> None:
        """Sweep for ever."""
        began = asyncio.get_running_loop().time()
        while True:
            await asyncio.sleep(TICK_SECONDS)
            if self._orphans and asyncio.get_running_loop().time() - began > self._lease:
                await self._orphans.end()
            self._output.tick(asyncio.get_running_loop().time())
            self._stuck.end(asyncio.get_running_loop().time())
            await self.end_leases()
            await self.end_overdue()

    async def serve_forgetting(self) -> None:
        """Forget what is over, for ever. Beside the rest, which must not wait for the disk."""
        while True:
            await asyncio.sleep(TICK_SECONDS)
            await self.forget()

    async def forget(self) -> None:
        """Forget the jobs whose retention has ended, as many as there are. Half of the time is left to others."""
        clock = asyncio.get_running_loop().time
        while True:
            began = clock()
            if await self._store.forget(self._clock.now(), BATCH) < BATCH:
                return
            await asyncio.sleep(clock() - began)

    async def end_leases(self) -> None:
        """Bury the workers that were not heard of for a whole lease."""
        now = asyncio.get_running_loop().time()
        for worker in self._fleet:
            if worker.has_exited:
                await self._runs.bury(worker, "its process ended")
            elif now - worker.seen > self._lease and (
                worker.port is None or worker.holds or worker.slots
            ):
                why = (
                    "its connection was lost"
                    if worker.port is None
                    else f"silent for {self._lease:g} s"
                )
                await self._runs.bury(worker, why)

    async def end_overdue(self) -> None:
        """End the jobs whose deadline has passed."""
        now, has_more = self._clock.now(), True
        while has_more:
            due = await self._store.due(now, BATCH)
            ended = [await self._end_overdue(job, now) for job in due]
            has_more = len(due) == BATCH and any(
                ended
            )  # what could not be ended would be due again
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
