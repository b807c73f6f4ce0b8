"""The file operations of the store, apart from those of SQLite itself, and the free space that new
jobs may use.
"""

from contextlib import AbstractContextManager, suppress
from pathlib import Path
from typing import BinaryIO, NamedTuple, Protocol

import structlog

from proxy.store.errors import StoreFullError

log = structlog.get_logger()

RESERVE_MAX_BYTES = 256 * 1024 * 1024

# Several times the size that SQLite's write-ahead log has at a checkpoint.
BALLAST_MAX_BYTES = 32 * 1024 * 1024

# On a small disk the reserve is 1/20 of it, and the ballast half of the reserve.
RESERVE_DISK_DIVISOR = 20


class Space(NamedTuple):
    """The size of a file system, in bytes. `free` counts what this process may use."""

    free: int
    total: int


class LockedError(Exception):
    """Another process holds the lock. `holder` is its process id, as text, or empty if unknown."""

    def __init__(self, holder: str) -> None:
        super().__init__(f"locked by process {holder or 'unknown'}")
        self.holder = holder


class HeldFile(Protocol):
    """An open file that this process holds. Each method may raise `OSError`."""

    def read(self, start: int, size: int) -> bytes:
        """Return up to `size` bytes from `start` on; less only at the end of the file."""
        ...

    def loss(self) -> str:
        """Return the reason why the path no longer leads to this file; empty while it does."""
        ...


class Disk(Protocol):
    """A file system. The files and folders that it creates are private to their owner.

    Each method may raise `OSError`.
    """

    def make_folder(self, folder: Path) -> None:
        """Create a folder and its parents; do nothing if it exists."""
        ...

    def real_path(self, path: Path) -> Path:
        """Return the path of the file itself if the path is a symbolic link, else the path."""
        ...

    def hold(self, path: Path) -> AbstractContextManager[HeldFile]:
        """Open a database file and lock it against other proxies; create it if missing.

        Enter the context before SQLite opens the file, and leave it after SQLite has closed it. The
        lock does not affect SQLite's own locks, and is skipped on file systems where it would.
        Entering raises `LockedError`.
        """
        ...

    def read(self, path: Path) -> AbstractContextManager[BinaryIO]:
        """Open a file for reading."""
        ...

    def lock(self, path: Path) -> AbstractContextManager[None]:
        """Lock a file against other processes while the context lasts; create it if missing.

        The lock also ends when the process ends, in any way. Entering raises `LockedError`.
        """
        ...

    def space(self, folder: Path) -> Space:
        """Return the size of the file system that contains a folder."""
        ...

    def exists(self, path: Path) -> bool:
        """Return True if the file exists."""
        ...

    def allocate(self, path: Path, size: int) -> None:
        """Create a file that occupies `size` bytes.

        Raises `FileExistsError`. After other errors a part of the file may remain.
        """
        ...

    def remove(self, path: Path) -> None:
        """Delete an existing file."""
        ...

    def lower_priority(self) -> None:
        """Let other threads use more of processor and disk than the current one, from now on.

        Does nothing where a thread does not have its own priority.
        """
        ...


class DiskSpace:
    """Decides if the disk has space for another job. Used by the writer only.

    SQLite needs free space even to delete. The disk must therefore not become full, and the store
    must be able to recover if it does. New jobs are rejected while less than the reserve is free.
    The reserve is for the jobs that the store already has: their takes, outputs and ends. If other
    programs fill the disk nevertheless, the ballast is deleted: a file that only occupies space. It
    is created again when there is enough space.
    """

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
