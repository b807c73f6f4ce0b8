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
    """A file system. Files and folders that it makes are private to their owner. Each method may raise `OSError`."""

    def make_folder(self, folder: Path) -> None:
        """Make a folder and its parents; do nothing if it exists."""
        ...

    def make_file(self, path: Path) -> None:
        """Make an empty file; do nothing if it exists."""
        ...

    def lock(self, path: Path) -> AbstractContextManager[None]:
        """Lock this file, which is made if it is missing, against other processes while the context lasts.

        The lock ends with the process, however that ends. Entering raises `LockedError`.
        """
        ...

    def space(self, folder: Path) -> Space:
        """Return the size of the file system that has this folder."""
        ...

    def exists(self, path: Path) -> bool:
        """Return whether there is a file."""
        ...

    def allocate(self, path: Path, size: int) -> None:
        """Make a file that occupies this many bytes. Raises `FileExistsError`; on other errors a part may remain."""
        ...

    def remove(self, path: Path) -> None:
        """Delete a file."""
        ...
