"""Periodic work: expired leases, deadlines, retentions and alarms."""

import asyncio

from proxy.service.clock_check import ClockCheck
from proxy.service.durable import DurableRuns
from proxy.service.fleet import Fleet
from proxy.service.interactive import InteractiveJobs
from proxy.service.orphans import Orphans
from proxy.service.pauses import LOOK_SECONDS, Pauses
from proxy.service.stuck import StuckWorkers

TICK_SECONDS = LOOK_SECONDS


class Sweeper:
    """Carries out what is due, a few times a second. `lease`: the seconds of a worker's lease."""

    def __init__(
        self,
        interactive: InteractiveJobs,
        durable: DurableRuns,
        fleet: Fleet,
        orphans: Orphans,
        stuck: StuckWorkers,
        pauses: Pauses,
        clock_check: ClockCheck,
        lease: float,
    ) -> None:
        self._interactive = interactive
        self._durable = durable
        self._fleet = fleet
        self._orphans = orphans
        self._stuck = stuck
        self._pauses = pauses
        self._clock_check = clock_check
        self._lease = lease

    async def serve(self) -> None:
        """End leases, interactive jobs and stuck workers in time, until cancelled.

        Nothing here waits for the store.
        """
        while True:
            await asyncio.sleep(TICK_SECONDS)
            now = asyncio.get_running_loop().time()
            self._pauses.look(now)
            self._interactive.tick(now)
            self._interactive.end_overdue()
            self._stuck.end(now)
            self._fleet.end_leases(now, self._lease)

    async def serve_durable(self) -> None:
        """End orphans and overdue durable jobs, until cancelled."""
        self._orphans.restart_lease(asyncio.get_running_loop().time())
        while True:
            await asyncio.sleep(TICK_SECONDS)
            now = asyncio.get_running_loop().time()
            self._pauses.look(now)
            await self._orphans.end_lease(now, self._lease)
            await self.end_overdue()

    async def serve_forgetting(self) -> None:
        """Forget expired durable jobs until cancelled. A loop of its own: the other duties must not
        wait for the disk.
        """
        while True:
            await asyncio.sleep(TICK_SECONDS)
            await self.forget()

    async def end_overdue(self) -> None:
        """End the overdue durable jobs, unless the clock may be wrong."""
        if self._clock_check.is_trusted():
            await self._durable.end_overdue()

    async def forget(self) -> None:
        """Forget the expired durable jobs, unless the clock may be wrong."""
        if self._clock_check.is_trusted():
            await self._durable.forget()
