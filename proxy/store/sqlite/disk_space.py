"""DiskSpace on the disk. A full one cannot even delete, so it must never get there, and there is a way back if it does.

New jobs are refused while less than a reserve is free: what is left is for the jobs that are there, their takes, their
outputs and their ends. Should others fill the disk all the same, the ballast is given up: a file that holds nothing
but its place. It is made again when there is room.
"""

from contextlib import suppress
from pathlib import Path

import structlog

from proxy.store.base import StoreFullError
from proxy.store.sqlite.disk import Disk

log = structlog.get_logger()

RESERVE = 256 * 1024 * 1024  # bytes that stay free for what must be written
BALLAST = (
    32 * 1024 * 1024
)  # bytes to give up: several times what SQLite's log has before it is put away
SMALL_DISK = 20  # of a small disk this part is reserved, and half of it is ballast


class DiskSpace:
    """Whether another job may come in. Used by the writer alone."""

    def __init__(self, ballast: Path, disk: Disk) -> None:
        self._ballast = ballast
        self._disk = disk
        self._reserve = self._size = self._free = 0
        self._is_short = False

    def look(self) -> None:
        """See how much is free now; make the ballast if it is missing and there is room."""
        space = self._disk.space(self._ballast.parent)
        self._free = space.free
        self._reserve = min(RESERVE, space.total // SMALL_DISK)
        self._size = min(BALLAST, self._reserve // 2)
        if self._free > self._reserve + self._size and not self._disk.exists(self._ballast):
            with suppress(OSError):  # without it the reserve is smaller, and that is all
                self._disk.allocate(self._ballast, self._size)
            self._free -= self._size
        if self._is_short and self._free > self._reserve:
            self._is_short = False
            log.warning("store.has_room", free=self._free)

    def admit(self, size: int) -> None:
        """Count on so many bytes for a new job, or raise `StoreFullError`."""
        size *= 2  # in SQLite's log first, then in their place
        if self._free - size < self._reserve:
            if not self._is_short:
                self._is_short = True
                log.error(
                    "store.full",
                    free=self._free,
                    reserve=self._reserve,
                    folder=str(self._ballast.parent),
                )
            raise StoreFullError(
                f"less than {self._reserve} bytes are free in {self._ballast.parent}"
            )
        self._free -= size

    def give_up(self) -> None:
        """The disk is full: let go of the ballast."""
        if self._disk.exists(self._ballast):
            log.error("store.gave_up_ballast", file=str(self._ballast))
            self._disk.remove(self._ballast)
