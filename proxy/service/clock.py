"""The wall clock of the proxy's decisions."""

from typing import Protocol

from proxy.jobs.model import Millis


class Clock(Protocol):
    """A source of the time; tests supply one that they set."""

    def now(self) -> Millis:
        """Return the milliseconds since the epoch."""
        ...
