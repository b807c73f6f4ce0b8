"""The one writer, with group commit.

Whatever waits to be written is written in its order, in one transaction and with one commit; so the cost of a commit is
shared by all that came while the last one went on. Only after it, on the event loop and in the same order, is each
write applied to what is kept in memory and its caller told. A caller that has left changes nothing about that.

Each write has a savepoint of its own: one that fails takes no other with it. When the disk is full everything is tried
again with the ballast's place, and then one by one, so that what is small, or frees some room, gets through. SQLite's
log is put away first: what it holds needs a place in the file, and then it begins anew in its own.

No other connection writes or puts SQLite's log away: besides being simple, that is what its bug with the reset of the
log (3.7.0 to 3.51.2) needs to never happen.
"""

import asyncio
import sqlite3
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Protocol, TypeAlias, TypeVar

from proxy.store.base import StoreFullError
from proxy.store.sqlite.disk_space import DiskSpace

T = TypeVar("T")

MOST = 256  # writes in one transaction: then the first of them need not wait for the last of a long line
FAILURES = (
    sqlite3.Error,
    OSError,
    MemoryError,
)  # of the file, whatever is written; the callers get them
MOST_BYTES = (
    8 * 1024 * 1024
)  # in one transaction, about: SQLite's log becomes as long as the longest


@dataclass(frozen=True, slots=True)
class Write:
    """Something to be written. `apply` and `undo` are called on the event loop; one of them, whoever still waits."""

    run: Callable[[sqlite3.Connection], Any]
    apply: Callable[[Any], None]
    undo: Callable[[], None]
    size: int
    future: asyncio.Future[Any]


class Runner(Protocol):
    """Calls a writer's step: in a thread in production, as a callback of the event loop in a simulation."""

    def wake(self) -> None:
        """Call the step once more, soon and after the steps of earlier wakes, unless one has returned False."""
        ...

    def join(self) -> None:
        """Wait for the end of the step that has returned False."""
        ...


StartRunner: TypeAlias = Callable[[Callable[[], bool]], Runner]
"""Make the runner of this step."""


class Writer:
    """Writes through one connection, which is its own from now on.

    The runner calls `step`; everything else is called on the event loop.
    """

    _runner: Runner

    def __init__(self, db: sqlite3.Connection, room: DiskSpace, start_runner: StartRunner) -> None:
        self._db, self._room = db, room
        self._start_runner = start_runner
        self._loop = asyncio.get_running_loop()
        self._waiting: deque[Write] = deque()
        self._is_closing = False
        self._closed = asyncio.Event()
        self.commits = 0

    def start(self) -> None:
        """Begin to write."""
        self._runner = self._start_runner(self.step)

    async def close(self) -> None:
        """Write what waits, then end."""
        self._is_closing = True
        self._runner.wake()
        await self._closed.wait()
        self._runner.join()

    async def do(
        self,
        run: Callable[[sqlite3.Connection], T],
        apply: Callable[[T], None],
        undo: Callable[[], None],
        size: int,
    ) -> T:
        """Do a write of about so many bytes and give what it gives, once it is on the disk and applied.

        Raises what it raises; then it has had no effect.
        """
        future: asyncio.Future[T] = self._loop.create_future()
        self._waiting.append(Write(run, apply, undo, size, future))
        self._runner.wake()
        return await future

    def step(self) -> bool:
        """Write the next batch, if anything waits, and have the event loop apply the results.

        Returns False when the writer is closing and everything is written: there will be nothing more to do.
        """
        batch = self._next()
        if batch:
            self._loop.call_soon_threadsafe(self._tell, batch, self._write(batch))
        if not self._is_closing or self._waiting:
            return True
        self._loop.call_soon_threadsafe(self._closed.set)
        return False

    def _next(self) -> list[Write]:
        """Take what waits, up to one transaction."""
        batch: list[Write] = []
        size = 0
        while self._waiting and len(batch) < MOST and size < MOST_BYTES:
            write = self._waiting.popleft()
            batch.append(write)
            size += write.size
        return batch

    def _tell(self, batch: Sequence[Write], results: Sequence[Any]) -> None:
        for write, result in zip(batch, results, strict=True):
            failed = isinstance(result, Exception)
            if failed:
                write.undo()
            else:
                write.apply(result)
            if not write.future.done():
                if failed:
                    write.future.set_exception(result)
                else:
                    write.future.set_result(result)

    def _write(self, batch: Sequence[Write]) -> list[Any]:
        """What each write gives, or the exception that it raised."""
        try:
            self._room.look()
            try:
                return self._commit(batch)
            except StoreFullError:
                self._room.give_up()
                self._put_log_away()
            try:
                return self._commit(batch)
            except StoreFullError:
                self._put_log_away()  # what did not fit has made it longer
        except FAILURES as error:
            return [error] * len(batch)
        return [self._alone(write) for write in batch]

    def _alone(self, write: Write) -> Any:
        try:
            return self._commit([write])[0]
        except (StoreFullError, *FAILURES) as error:
            self._put_log_away()
            return error

    def _commit(self, batch: Sequence[Write]) -> list[Any]:
        """Write these in one transaction. Raises `StoreFullError` if there is no room for it; then it has no effect."""
        try:
            self._db.execute("BEGIN IMMEDIATE")
            results = [self._step(write) for write in batch]
            self._db.execute("COMMIT")
        except sqlite3.Error as error:
            if _is_full(error):
                raise StoreFullError("the disk is full") from error
            raise
        finally:
            if self._db.in_transaction:
                self._db.execute("ROLLBACK")
        self.commits += 1
        return results

    def _step(self, write: Write) -> Any:
        self._db.execute("SAVEPOINT step")
        try:
            result = write.run(self._db)
        except Exception as error:  # its caller gets it
            if not self._db.in_transaction or _is_full(
                error
            ):  # SQLite has given up the whole transaction, or will
                raise
            self._db.execute("ROLLBACK TO step")
            result = error
        self._db.execute("RELEASE step")
        return result

    def _put_log_away(self) -> None:
        with suppress(sqlite3.Error):
            self._db.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()


def _is_full(error: Exception) -> bool:
    return (
        isinstance(error, sqlite3.Error)
        and getattr(error, "sqlite_errorcode", None) == sqlite3.SQLITE_FULL
    )


def nothing(*_: object) -> None:
    """Nothing is kept in memory about this write."""
