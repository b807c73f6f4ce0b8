"""A rate limit for log lines: a pure decision; the time is an argument."""

from collections import deque
from dataclasses import dataclass, field

WINDOW_SECONDS = 60.0
LINES = 10  # of one name in any window
BYTES = 6_000  # of all names together, after which none is admitted in this window


@dataclass(slots=True)
class _Name:
    """The recent lines of one name."""

    admitted: deque[float] = field(default_factory=lambda: deque(maxlen=LINES))
    suppressed: int = 0
    since: float = 0.0  # when the first of the suppressed lines came


class LineLimit:
    """Admits `LINES` lines of a name in any minute, and counts the others.

    The names must come from the code, not from a client: each one that was seen is kept.
    """

    def __init__(self) -> None:
        self._names: dict[str, _Name] = {}
        self._spent: deque[tuple[float, int]] = deque()  # bytes written in the last window
        self._bytes = 0

    def admit(self, name: str, now: float) -> bool:
        """Return whether a line of this name may be written; one that may not be is counted."""
        entry = self._names.setdefault(name, _Name())
        while self._spent and now - self._spent[0][0] >= WINDOW_SECONDS:
            self._bytes -= self._spent.popleft()[1]
        is_full = len(entry.admitted) == LINES and now - entry.admitted[0] < WINDOW_SECONDS
        if is_full or self._bytes >= BYTES:
            entry.since = entry.since if entry.suppressed else now
            entry.suppressed += 1
            return False
        entry.admitted.append(now)
        return True

    def spend(self, size: int, now: float) -> None:
        """Note that an admitted line had `size` bytes."""
        self._spent.append((now, size))
        self._bytes += size

    def take_suppressed(self, now: float, *, all_of_them: bool = False) -> list[tuple[str, int]]:
        """Return names and counts of suppressed lines, one a minute for each name, and reset them.

        Args:
            now: the time.
            all_of_them: also those whose minute is not over, because the process ends.

        """
        due = [
            (name, entry)
            for name, entry in self._names.items()
            if entry.suppressed and (all_of_them or now - entry.since >= WINDOW_SECONDS)
        ]
        found = [(name, entry.suppressed) for name, entry in due]
        for _, entry in due:
            entry.suppressed = 0
        return found

    def next_due(self) -> float | None:
        """Return when the next count is due, or None."""
        waiting = [entry.since for entry in self._names.values() if entry.suppressed]
        return min(waiting) + WINDOW_SECONDS if waiting else None
