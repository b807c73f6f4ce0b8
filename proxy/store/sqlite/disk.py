"""The file operations of the store, apart from those of SQLite itself."""

from contextlib import AbstractContextManager
from pathlib import Path
from typing import NamedTuple, Protocol


class Space(NamedTuple):
    """The size of a file system, in bytes. `free` counts what this process may use."""

    free: int
    total: int


class LockedError(Exception):
    """Another process holds the lock. `holder` is its process id, as text, or empty if unknown."""

    def __init__(self, holder: str) -> None:
        super().__init__(f"locked by process {holder or 'unknown'}")
        self.holder = holder


class Disk(Protocol):
    """A file system. The files and folders that it creates are private to their owner.

    Each method may raise `OSError`.
    """

    def make_folder(self, folder: Path) -> None:
        """Create a folder and its parents; do nothing if it exists."""
        ...

    def make_file(self, path: Path) -> None:
        """Create an empty file; do nothing if it exists."""
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
