"""A clock that a test controls."""

from proxy.jobs.model import Millis


class FakeClock:
    """`Clock` whose time changes only by `pass_time`, and whose wall clock also by `correct`."""

    def __init__(self, now: int = 1_800_000_000_000) -> None:
        self._now = now
        self._correction = 0

    def now(self) -> Millis:
        return Millis(self._now)

    def wall(self) -> Millis:
        return Millis(self._now + self._correction)

    def pass_time(self, seconds: float) -> None:
        """Advance the clock."""
        self._now += int(seconds * 1000)

    def correct(self, seconds: float) -> None:
        """Set the wall clock forward or, by a negative number, back."""
        self._correction += int(seconds * 1000)
