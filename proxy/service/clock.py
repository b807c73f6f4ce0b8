"""The only clock of the proxy's decisions."""

from typing import Protocol

from proxy.jobs.model import Millis


class Clock(Protocol):
    """Tells the time; the tests have one that they set."""

    def now(self) -> Millis:
        """Milliseconds since the epoch."""
        ...
