"""A clock that a test sets."""

from proxy.jobs.model import Millis


class FakeClock:
    """Stands still until it is told."""

    def __init__(self, now: int = 1_800_000_000_000) -> None:
        self._now = now

    def now(self) -> Millis:
        return Millis(self._now)

    def pass_time(self, seconds: float) -> None:
        """Go on by so much."""
        self._now += int(seconds * 1000)
