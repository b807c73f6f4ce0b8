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
    """Carries out what is due and needs no store, a few times a second.

    `lease`: the seconds of a worker's lease.
    """

    def __init__(
        self,
        interactive: InteractiveJobs,
        fleet: Fleet,
        stuck: StuckWorkers,
        pauses: Pauses,
        lease: float,
    ) -> None:
        self._interactive = interactive
        self._fleet = fleet
        self._stuck = stuck
        self._pauses = pauses
        self._lease = lease

    async def serve(self) -> None:
        """End leases, interactive jobs and stuck workers in time, until cancelled."""
        while True:
            await asyncio.sleep(TICK_SECONDS)
            now = asyncio.get_running_loop().time()
            self._pauses.look(now)
            self._interactive.tick(now)
            self._interactive.end_overdue()
            self._stuck.end(now)
            self._fleet.end_leases(now, self._lease)
            self._fleet.end_full(now)


class DurableSweeper:
    """Carries out what is due for durable jobs; it may have to wait for the store."""

    def __init__(
        self,
        runs: DurableRuns,
        orphans: Orphans,
        pauses: Pauses,
        clock_check: ClockCheck,
        lease: float,
    ) -> None:
        self._runs = runs
        self._orphans = orphans
        self._pauses = pauses
        self._clock_check = clock_check
        self._lease = lease

    async def serve(self) -> None:
        """End the lease of the orphans, until cancelled. It asks the store nothing, so that errors
        of the store do not start this lease again.
        """
        self._orphans.restart_lease(asyncio.get_running_loop().time())
        while True:
            await asyncio.sleep(TICK_SECONDS)
            now = asyncio.get_running_loop().time()
            self._pauses.look(now)
            self._orphans.end_lease(now, self._lease)

    async def serve_overdue(self) -> None:
        """End overdue jobs until cancelled."""
        while True:
            await asyncio.sleep(TICK_SECONDS)
            await self.end_overdue()

    async def serve_forgetting(self) -> None:
        """Forget expired jobs until cancelled. A loop of its own: the other duties must not wait
        for the disk.
        """
        while True:
            await asyncio.sleep(TICK_SECONDS)
            await self.forget()

    async def end_overdue(self) -> None:
        """End the overdue jobs, unless the clock may be wrong."""
        if self._clock_check.is_trusted():
            await self._runs.end_overdue()

    async def forget(self) -> None:
        """Forget the expired jobs, unless the clock may be wrong."""
        # The store may have failed at the start.
        await self._clock_check.hasten_deliveries()
        if self._clock_check.is_trusted():
            await self._runs.forget()
