"""Pauses of the process: it was stopped, its machine was suspended, or the event loop was blocked.

A lease measures the silence of a worker. After a pause, a silence proves nothing: the messages of
the workers wait in their sockets. Therefore all leases begin again, before one of them is judged,
and the messages are processed in the meantime. The wall clock does not matter here.
"""

from collections.abc import Callable
from typing import TypeAlias

import structlog

log = structlog.get_logger()

# The longest time between two calls of `look` in an event loop that is only busy.
PAUSE_MIN_SECONDS = 1.0
# The interval at which those who judge leases look.
LOOK_SECONDS = 0.25

Restart: TypeAlias = Callable[[float], None]
"""Starts leases again, at this time of the event loop."""


class Pauses:
    """Notices pauses, and restarts the leases of its subscribers."""

    def __init__(self) -> None:
        self._restarts: list[Restart] = []
        self._looked_at: float | None = None

    def then(self, restart: Restart) -> None:
        """Call `restart` after each pause."""
        self._restarts.append(restart)

    def look(self, now: float) -> None:
        """Restart all leases if there was a pause. Called before each judgement, and at least
        every `LOOK_SECONDS`.
        """
        before = self._looked_at
        self._looked_at = now
        if before is not None and now - before > PAUSE_MIN_SECONDS + LOOK_SECONDS:
            log.warning("loop.paused", seconds=round(now - before, 1))
            for restart in self._restarts:
                restart(now)
