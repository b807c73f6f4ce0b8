"""The free space of the store's disk, and the reserve of it that new jobs may not use.

SQLite needs free space even to delete. The disk must therefore not become full, and the store must
be able to recover if it does.

New jobs are rejected while less than the reserve is free. The reserve is for the jobs that the
store already has: their takes, outputs and ends. If other programs fill the disk nevertheless, the
ballast is deleted: a file that only occupies space. It is created again when there is enough space.
"""

from contextlib import suppress
from pathlib import Path

import structlog

from proxy.store.errors import StoreFullError
from proxy.store.sqlite.disk import Disk

log = structlog.get_logger()

RESERVE_MAX_BYTES = 256 * 1024 * 1024

# Several times the size that SQLite's write-ahead log has at a checkpoint.
BALLAST_MAX_BYTES = 32 * 1024 * 1024

# On a small disk the reserve is 1/20 of it, and the ballast half of the reserve.
RESERVE_DISK_DIVISOR = 20


class DiskSpace:
    """Decides if the disk has space for another job. Used by the writer only."""

    def __init__(self, ballast: Path, disk: Disk) -> None:
        self._ballast = ballast
        self._disk = disk
        self._reserve = 0
        self._ballast_size = 0
        self._free = 0
        self._is_short = False

    def refresh(self) -> None:
        """Measure the free space; create the ballast if it is missing and there is space for it."""
        space = self._disk.space(self._ballast.parent)
        self._free = space.free
        self._reserve = min(RESERVE_MAX_BYTES, space.total // RESERVE_DISK_DIVISOR)
        self._ballast_size = min(BALLAST_MAX_BYTES, self._reserve // 2)
        if self._free > self._reserve + self._ballast_size and not self._disk.exists(self._ballast):
            # Without the ballast the store works, with a smaller reserve.
            with suppress(OSError):
                self._disk.allocate(self._ballast, self._ballast_size)
            self._free -= self._ballast_size
        if self._is_short and self._free > self._reserve:
            self._is_short = False
            log.warning("store.has_room", free=self._free)

    def admit(self, size: int) -> None:
        """Reserve space for a new job of `size` bytes. Raises `StoreFullError`."""
        # SQLite writes the bytes to its write-ahead log first, then to the file.
        size *= 2
        if self._free - size < self._reserve:
            if not self._is_short:
                self._is_short = True
                log.error(
                    "store.full",
                    free=self._free,
                    reserve=self._reserve,
                    folder=str(self._ballast.parent),
                    hint="new jobs are rejected; free space on this disk",
                )
            raise StoreFullError(
                f"{self._ballast.parent} has less than {self._reserve} bytes of free space"
            )
        self._free -= size

    def release_ballast(self) -> None:
        """Delete the ballast, if it exists, because the disk is full."""
        if self._disk.exists(self._ballast):
            log.error("store.gave_up_ballast", file=str(self._ballast))
            self._disk.remove(self._ballast)
