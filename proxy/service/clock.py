"""The only clock of the proxy's decisions."""

import time
from typing import Protocol

from proxy.jobs.model import Millis


class Clock(Protocol):
    """Tells the time; the tests have one that they set."""

    def now(self) -> Millis:
        """Milliseconds since the epoch."""
        ...


class SystemClock:
    """Wall time at the start, monotonic from there: a clock that is set back or forward changes no deadline."""

    def __init__(self) -> None:
        self._offset = time.time_ns() - time.monotonic_ns()

    def now(self) -> Millis:
        """Milliseconds since the epoch."""
        return Millis((time.monotonic_ns() + self._offset) // 1_000_000)
