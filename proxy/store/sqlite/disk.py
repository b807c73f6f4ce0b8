"""The file operations of the store, apart from those of SQLite itself."""

from contextlib import AbstractContextManager
from pathlib import Path
from typing import BinaryIO, NamedTuple, Protocol


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
