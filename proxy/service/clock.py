"""The clock of the proxy's decisions, and the wall clock."""

from typing import Protocol

from proxy.jobs.model import Millis

# Smaller corrections of the wall clock are not worth a different time in each response.
CORRECTION_MILLIS = 1_000


class Clock(Protocol):
    """A source of the time; tests supply one that they set."""

    def now(self) -> Millis:
        """Return the milliseconds since the epoch, as if the wall clock was never changed.

        All durations and deadlines use this time.
        """
        ...

    def wall(self) -> Millis:
        """Return the milliseconds since the epoch that the wall clock shows.

        Times that other machines compare with their own clock use this time.
        """
        ...


def shown(clock: Clock, moment: Millis) -> Millis:
    """Return a moment of `Clock.now` as the wall clock shows it, in full seconds of difference."""
    seconds = round((clock.wall() - clock.now()) / CORRECTION_MILLIS)
    return Millis(moment + seconds * CORRECTION_MILLIS)
