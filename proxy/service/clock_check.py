"""The check of the clock at the start of the proxy, against the records of the store."""

import structlog

from proxy.jobs.model import Millis
from proxy.jobs.policy import DELIVERY_RETRY_MILLIS
from proxy.service.clock import Clock
from proxy.store.base import JobStore
from proxy.store.errors import StoreError

log = structlog.get_logger()

# A clock that is further ahead of the newest record may be wrong; or the proxy was not running.
JUMP_MILLIS = Millis(24 * 3600_000)
HOUR_MILLIS = 3600_000
HINT = (
    "if the clock is wrong, correct it and restart the proxy within this time; after that, jobs "
    "expire and results are deleted"
)


class ClockCheck:
    """Delays the expiry of jobs after a start at which the clock may be ahead.

    Such a clock would expire all jobs and delete all results at once. `grace`: the time in which
    nothing expires, for the operator to correct the clock.
    """

    def __init__(self, store: JobStore, clock: Clock, grace: Millis) -> None:
        self._store = store
        self._clock = clock
        self._grace = grace
        self._has_hastened = False
        # Set if the clock may be ahead.
        self._newest: Millis | None = None
        self._until = Millis(0)

    async def start(self) -> None:
        """Check the clock, after the store was opened."""
        now = self._clock.now()
        # Records from the future were written while the clock was ahead.
        newest = await self._store.newest(now)
        if newest is not None and now - newest > JUMP_MILLIS:
            self._newest = newest
            self._until = Millis(now + self._grace)
            log.warning(
                "clock.jumped",
                hours_ahead=round((now - newest) / HOUR_MILLIS),
                grace_seconds=self._grace / 1000,
                hint=HINT,
            )
        try:
            await self.hasten_deliveries()
        except StoreError as error:
            log.warning("clock.deliveries_wait", why=str(error))

    async def hasten_deliveries(self) -> None:
        """Make the deliveries due that would wait for a time from before the clock was set back.

        Does nothing once the store has done it.
        """
        if not self._has_hastened:
            now = self._clock.now()
            await self._store.hasten(Millis(now + DELIVERY_RETRY_MILLIS), now)
            self._has_hastened = True

    def is_trusted(self) -> bool:
        """Return True if jobs may expire and be deleted.

        A wall clock that was corrected meanwhile shows that the time at the start was wrong. Then
        nothing expires until the restart of the proxy, or until the wall clock is as far ahead.
        """
        if self._newest is None:
            return True
        is_still_ahead = self._clock.wall() - self._newest > JUMP_MILLIS
        return is_still_ahead and self._clock.now() >= self._until
