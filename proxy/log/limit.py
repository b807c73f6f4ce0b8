"""A rate limit for log lines, as a pure function of the names, the sizes and the time."""

from collections import deque
from dataclasses import dataclass, field

WINDOW_SECONDS = 60.0

# Lines of one name in any window.
MAX_LINES_PER_NAME = 10

# Bytes of all names together; above this, no line is admitted until the window has moved on.
MAX_BYTES_PER_WINDOW = 6_000


@dataclass(slots=True)
class _Name:
    """The lines of one name: the times of the last admitted ones, and the suppressed ones."""

    admitted: deque[float] = field(default_factory=lambda: deque(maxlen=MAX_LINES_PER_NAME))
    suppressed: int = 0
    # Time of the first suppressed line.
    since: float = 0.0


class LineLimit:
    """Admits `MAX_LINES_PER_NAME` lines of a name in any minute, and counts the others.

    The names must come from the code, not from a client, because they are never deleted.
    """

    def __init__(self) -> None:
        self._names: dict[str, _Name] = {}
        # Times and sizes of the lines written in the last window, and the sum of these sizes.
        self._spent: deque[tuple[float, int]] = deque()
        self._bytes = 0

    def admit(self, name: str, now: float) -> bool:
        """Return True if a line of this name may be written; else count it as suppressed."""
        entry = self._names.setdefault(name, _Name())
        while self._spent and now - self._spent[0][0] >= WINDOW_SECONDS:
            self._bytes -= self._spent.popleft()[1]
        admitted = entry.admitted
        is_full = len(admitted) == MAX_LINES_PER_NAME and now - admitted[0] < WINDOW_SECONDS
        if is_full or self._bytes >= MAX_BYTES_PER_WINDOW:
            if not entry.suppressed:
                entry.since = now
            entry.suppressed += 1
            return False
        entry.admitted.append(now)
        return True

    def spend(self, size: int, now: float) -> None:
        """Record that an admitted line had `size` bytes."""
        self._spent.append((now, size))
        self._bytes += size

    def take_suppressed(self, now: float, *, all_of_them: bool = False) -> list[tuple[str, int]]:
        """Return names and counts of suppressed lines, once a minute for each name, and reset them.

        Args:
            now: current time.
            all_of_them: include names whose minute is not over, because the process ends.

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
        """Return the time at which the next count is due, or None if no lines were suppressed."""
        waiting = [entry.since for entry in self._names.values() if entry.suppressed]
        return min(waiting) + WINDOW_SECONDS if waiting else None
