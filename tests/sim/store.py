"""The store of a simulated proxy: real SQLite on a simulated disk, with planned failures.

The writer's step runs on the loop, some time after its wake. Its results are handled some time
after the commit, so that other events, and the death of the process, can come in between.
"""

import sqlite3
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

from proxy.store.sqlite.disk import LockedError, Space
from sim.loop import SimLoop
from sim.node import NODE, KilledError, Node

CODES = {
    "full": (sqlite3.SQLITE_FULL, "database or disk is full"),
    "busy": (sqlite3.SQLITE_BUSY, "database is locked"),
    "ioerr": (sqlite3.SQLITE_IOERR, "disk I/O error"),
}
FREE_BYTES = 10**12


class SimDisk:
    """`Disk` that outlives the processes of the proxy. Only SQLite's own files are real."""

    def __init__(self) -> None:
        self._holders: dict[Path, Node] = {}
        self._files: dict[Path, int] = {}

    def make_folder(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)

    def real_path(self, path: Path) -> Path:
        return path

    @contextmanager
    def hold(self, path: Path) -> Iterator["SimFile"]:
        with self.lock(path):
            path.touch()
            yield SimFile(path)

    @contextmanager
    def read(self, path: Path) -> Iterator[BinaryIO]:
        with path.open("rb") as file:
            yield file

    @contextmanager
    def lock(self, path: Path) -> Iterator[None]:
        holder = self._holders.get(path)
        if holder is not None and not holder.is_dead:
            raise LockedError(holder.name)
        if (node := NODE.get()) is not None:
            self._holders[path] = node
        try:
            yield
        finally:
            self._holders.pop(path, None)

    def space(self, folder: Path) -> Space:  # noqa: ARG002 - there is one disk
        return Space(FREE_BYTES, FREE_BYTES)

    def exists(self, path: Path) -> bool:
        return path in self._files or path.exists()

    def allocate(self, path: Path, size: int) -> None:
        self._files[path] = size

    def remove(self, path: Path) -> None:
        del self._files[path]

    def lower_priority(self) -> None:
        """Do nothing: a simulation has one thread."""


@dataclass(frozen=True, slots=True)
class SimFile:
    """`HeldFile` of a disk on which no file is lost."""

    path: Path

    def read(self, start: int, size: int) -> bytes:
        return self.path.read_bytes()[start : start + size]

    def loss(self) -> str:
        return ""


@dataclass(slots=True)
class StoreFaults:
    """The failures that are due: each matching statement uses up one.

    `where`: begin, statement, commit or read. `kill`: "before" or "after" kills the process at the
    next commit. `lies`: commits that report success and do nothing, to test the oracle.
    """

    where: str = ""
    code: str = ""
    times: int = 0
    kill: str = ""
    lies: int = 0
    trace: Callable[[str], None] = field(default=print)

    def check(self, where: str) -> None:
        """Raise the planned failure of a statement, if one is due."""
        if self.times and self.where == where:
            self.times -= 1
            number, text = CODES[self.code]
            self.trace(f"fail {where} {self.code}")
            error = sqlite3.OperationalError(text)
            error.sqlite_errorcode = number
            raise error

    def heal(self) -> None:
        """End the failures."""
        self.times = 0

    def crash(self, moment: str) -> None:
        """Kill the current process, if that is due at this moment of a commit."""
        node = NODE.get()
        if self.kill == moment and node is not None:
            self.kill = ""
            self.trace(f"kill {node.name} {moment} commit")
            node.kill()
            raise KilledError


class FaultyConnection:
    """The writer's connection, with the planned failures."""

    def __init__(self, db: sqlite3.Connection, faults: StoreFaults) -> None:
        self._db = db
        self._faults = faults

    def __getattr__(self, name: str) -> Any:
        return getattr(self._db, name)

    def execute(self, sql: str, parameters: Any = ()) -> sqlite3.Cursor:
        if sql == "COMMIT":
            self._faults.crash("before")
            self._faults.check("commit")
            if self._faults.lies:
                self._faults.lies -= 1
                return self._db.execute("ROLLBACK")
            cursor = self._db.execute(sql)
            self._faults.trace("commit")
            self._faults.crash("after")
            return cursor
        if sql.startswith("BEGIN"):
            self._faults.check("begin")
        elif not sql.startswith(("SAVEPOINT", "RELEASE", "ROLLBACK", "PRAGMA")):
            self._faults.check("statement")
        return self._db.execute(sql, parameters)

    def executemany(self, sql: str, parameters: Any) -> sqlite3.Cursor:
        self._faults.check("statement")
        return self._db.executemany(sql, parameters)


class FaultyReader:
    """The reader's connection, with the planned failures."""

    def __init__(self, db: sqlite3.Connection, faults: StoreFaults) -> None:
        self._db = db
        self._faults = faults

    def execute(self, sql: str, parameters: Any = ()) -> sqlite3.Cursor:
        if sql not in ("BEGIN", "COMMIT"):
            self._faults.check("read")
        return self._db.execute(sql, parameters)


class SimRunner:
    """`Runner` on the loop."""

    def __init__(self, loop: SimLoop, step: Callable[[], bool], faults: StoreFaults) -> None:
        self._loop = loop
        self._step = step
        self._due = 0.0
        self._is_open = True
        writer: Any = step.__self__  # type: ignore[attr-defined]
        db = writer._db
        writer._db = FaultyConnection(db, faults)
        writer._loop = Late(loop)
        node = NODE.get()
        if node is not None:
            node.on_kill.append(lambda: _close(db))

    def wake(self) -> None:
        self._due = max(self._due, self._loop.time() + self._loop.delay())
        self._loop.call_at(self._due, self._run)

    def join(self) -> None:
        """Do nothing: the step runs on the loop."""

    def _run(self) -> None:
        if self._is_open:
            self._is_open = self._step()


class Late:
    """A loop whose `call_soon_threadsafe` is late, as if another thread called it."""

    def __init__(self, loop: SimLoop) -> None:
        self._loop = loop
        self._due = 0.0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._loop, name)

    def call_soon_threadsafe(self, callback: Callable[..., object], *args: Any) -> None:
        # Later than earlier calls also if the clock does not advance in between.
        self._due = max(self._due + 1e-9, self._loop.time() + self._loop.delay())
        self._loop.call_at(self._due, callback, *args)


def _close(db: sqlite3.Connection) -> None:
    """Release the file as the operating system does; an open transaction is rolled back."""
    with suppress(sqlite3.Error):
        db.close()
