"""A clock that a test controls."""

from proxy.jobs.model import Millis


class FakeClock:
    """`Clock` whose time changes only by `pass_time`."""

    def __init__(self, now: int = 1_800_000_000_000) -> None:
        self._now = now

    def now(self) -> Millis:
        return Millis(self._now)

    def pass_time(self, seconds: float) -> None:
        """Advance the clock."""
        self._now += int(seconds * 1000)
