"""What the proxy takes from the operating system, in one value.

`app.compose` passes it on. A simulation gives a value of its own, so that a run follows from its seed alone. The
monotonic clock, timers, sockets and other threads come from the event loop, which a simulation replaces as a whole.
"""

import time
from dataclasses import dataclass, field
from secrets import token_bytes

from proxy.jobs.model import Millis
from proxy.service.clock import Clock
from proxy.service.ids import RandomBytes


class SystemClock:
    """Wall time at the start, monotonic from there: a clock that is set back or forward changes no deadline."""

    def __init__(self) -> None:
        self._offset = time.time_ns() - time.monotonic_ns()

    def now(self) -> Millis:
        """Milliseconds since the epoch."""
        return Millis((time.monotonic_ns() + self._offset) // 1_000_000)


@dataclass(frozen=True, slots=True)
class System:
    """Wall clock and random bytes of this machine, where nothing else is given."""

    clock: Clock = field(default_factory=SystemClock)
    random_bytes: RandomBytes = token_bytes
