"""The only writer of the database file, with group commit.

Queued writes are executed in their order, in one transaction with one commit, so that all writes
that arrive during a commit share the cost of the next. Only after the commit, on the event loop and
in the same order, is each write applied to the state in memory and its caller notified. A
cancelled caller does not change this.

Each write has its own savepoint, so that one failing write does not affect the others. If the disk
is full, the batch is repeated after the ballast has been deleted, and then each write alone: small
writes, and writes that free space, can still succeed. SQLite's write-ahead log (WAL) is
checkpointed before that, because its content needs space in the file; the log is then reused from
its start.

No other connection writes or runs a checkpoint. Besides being simple, this avoids SQLite's
WAL-reset bug (versions 3.7.0 to 3.51.2), which needs two such connections.

SQLite continues to write to a file that was deleted or replaced, and all of that is lost when the
process ends. So `FileWatch` checks the file after each commit, before the commit is acknowledged,
and once a second for a store that is not written to.
"""

import asyncio
import sqlite3
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Protocol, TypeAlias, TypeVar

import structlog

from proxy.store.errors import StoreBusyError, StoreFullError, StoreGoneError
from proxy.store.sqlite.disk import DiskSpace, HeldFile

log = structlog.get_logger()

CHECK_SECONDS = 1.0


class FileWatch:
    """The state of the file: usable, or gone for good. `check` and `give_up` may be called in any
    thread.
    """

    _file: HeldFile
    _loop: asyncio.AbstractEventLoop

    def __init__(self) -> None:
        self._is_gone = asyncio.Event()
        self._is_closing = asyncio.Event()
        self.gone = ""
        """The reason why the file cannot be used; empty while it can."""

    def begin(self, file: HeldFile) -> None:
        """Watch a file that was opened."""
        self._file = file
        self._loop = asyncio.get_running_loop()

    def require(self) -> None:
        """Raise `StoreGoneError` if the file is known to be gone."""
        if self.gone:
            raise StoreGoneError(self.gone)

    def check(self) -> None:
        """Raise `StoreGoneError` if the file was deleted or replaced, or is known to be gone."""
        self.require()
        # An error of the disk says nothing about the file.
        with suppress(OSError):
            if reason := self._file.loss():
                self.give_up(reason)
        self.require()

    def give_up(self, reason: str) -> None:
        """Note that the file cannot be used any longer."""
        if not self.gone:
            self.gone = reason
            log.error("store.gone", why=reason)
            self._loop.call_soon_threadsafe(self._is_gone.set)

    async def until_gone(self) -> str:
        """Wait until the file is gone; return the reason."""
        await self._is_gone.wait()
        return self.gone

    async def serve(self) -> None:
        """Check the file once a second, until it is gone or `close` is called.

        Must have returned before the file is closed.
        """
        with suppress(StoreGoneError):
            while not self._is_closing.is_set():
                # In a thread, because a disk that hangs must not block the event loop.
                await asyncio.to_thread(self.check)
                with suppress(TimeoutError):
                    async with asyncio.timeout(CHECK_SECONDS):
                        await self._is_closing.wait()

    def close(self) -> None:
        """Let `serve` return."""
        self._is_closing.set()


T = TypeVar("T")

# Bounds the time that the first write of a batch waits for the last one.
MAX_WRITES_PER_COMMIT = 256

# Approximate: SQLite's write-ahead log grows to the size of the largest transaction.
MAX_BYTES_PER_COMMIT = 8 * 1024 * 1024

# Failures of the file itself; every caller of the batch receives them.
FILE_ERRORS = (sqlite3.Error, OSError, MemoryError)

# Result codes of SQLite for a file that cannot be used any longer.
GONE_CODES = (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)

# The low byte of an extended result code is the primary one.
PRIMARY_CODE_MASK = 0xFF


@dataclass(frozen=True, slots=True)
class Write:
    """A queued write.

    After it, exactly one of `apply` (with the result) and `undo` is called, on the event loop, also
    if the caller has been cancelled. `size` is its approximate number of bytes.
    """

    run: Callable[[sqlite3.Connection], Any]
    apply: Callable[[Any], None]
    undo: Callable[[], None]
    size: int
    future: asyncio.Future[Any]


class Runner(Protocol):
    """Calls the writer's `step`: in a thread or, in a simulation, on the event loop."""

    def wake(self) -> None:
        """Schedule one more call of the step, after the calls of earlier wakes.

        Does nothing once a step has returned False.
        """
        ...

    def join(self) -> None:
        """Wait until the step that returned False has finished."""
        ...


StartRunner: TypeAlias = Callable[[Callable[[], bool]], Runner]
"""Creates the runner of a step."""


class Writer:
    """Writes through one connection, which it owns.

    The runner calls `step`; all other methods are called on the event loop.
    """

    _runner: Runner

    def __init__(
        self,
        db: sqlite3.Connection,
        disk_space: DiskSpace,
        watch: FileWatch,
        start_runner: StartRunner,
    ) -> None:
        self._db = db
        self._disk_space = disk_space
        self._watch = watch
        self._start_runner = start_runner
        self._loop = asyncio.get_running_loop()
        self._waiting: deque[Write] = deque()
        self._is_closing = False
        self._closed = asyncio.Event()
        self.commits = 0

    def start(self) -> None:
        """Start the runner; writes are executed from now on."""
        self._runner = self._start_runner(self.step)

    async def close(self) -> None:
        """Commit the queued writes, then stop the runner."""
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
        """Queue a write of about `size` bytes; return the result of `run` after commit and `apply`.

        Raises the exception of `run`, or of the file. The write has had no effect then.
        """
        future: asyncio.Future[T] = self._loop.create_future()
        self._waiting.append(Write(run, apply, undo, size, future))
        self._runner.wake()
        return await future

    def step(self) -> bool:
        """Write the next batch, if any, and schedule its results on the event loop.

        Returns False if the writer is closing and its queue is empty: the last step.
        """
        batch = self._next_batch()
        if batch:
            self._loop.call_soon_threadsafe(self._finish, batch, self._write(batch))
        if not self._is_closing or self._waiting:
            return True
        self._loop.call_soon_threadsafe(self._closed.set)
        return False

    def _next_batch(self) -> list[Write]:
        """Take queued writes, up to the bounds of one transaction."""
        batch: list[Write] = []
        size = 0
        while self._waiting and len(batch) < MAX_WRITES_PER_COMMIT and size < MAX_BYTES_PER_COMMIT:
            write = self._waiting.popleft()
            batch.append(write)
            size += write.size
        return batch

    def _finish(self, batch: Sequence[Write], results: Sequence[Any]) -> None:
        for write, result in zip(batch, results, strict=True):
            if isinstance(result, Exception):
                error = store_error(result)
                if isinstance(error, StoreGoneError):
                    self._watch.give_up(str(error))
                write.undo()
                if not write.future.done():
                    write.future.set_exception(error)
            else:
                write.apply(result)
                if not write.future.done():
                    write.future.set_result(result)

    def _write(self, batch: Sequence[Write]) -> list[Any]:
        """Return, for each write, its result or the exception that it raised."""
        try:
            self._watch.check()
            results = self._try_to_write(batch)
            # What was written to a file without a name would be lost, so it is not acknowledged.
            self._watch.check()
        except StoreGoneError as error:
            return [error] * len(batch)
        return results

    def _try_to_write(self, batch: Sequence[Write]) -> list[Any]:
        try:
            self._disk_space.refresh()
            try:
                return self._commit(batch)
            except StoreFullError:
                self._disk_space.release_ballast()
                self._checkpoint()
            try:
                return self._commit(batch)
            except StoreFullError:
                # The failed transaction has extended the write-ahead log.
                self._checkpoint()
        except FILE_ERRORS as error:
            return [error] * len(batch)
        return [self._commit_alone(write) for write in batch]

    def _commit_alone(self, write: Write) -> Any:
        try:
            return self._commit([write])[0]
        except (StoreFullError, *FILE_ERRORS) as error:
            self._checkpoint()
            return error

    def _commit(self, batch: Sequence[Write]) -> list[Any]:
        """Execute a batch in one transaction and return the results.

        Raises `StoreFullError` if the disk is full. The batch has had no effect then.
        """
        try:
            self._db.execute("BEGIN IMMEDIATE")
            results = [self._execute(write) for write in batch]
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

    def _execute(self, write: Write) -> Any:
        self._db.execute("SAVEPOINT step")
        try:
            result = write.run(self._db)
        except Exception as error:  # passed on to the caller of this write
            # SQLite has rolled the whole transaction back, or will do so.
            if not self._db.in_transaction or _is_full(error):
                raise
            self._db.execute("ROLLBACK TO step")
            result = error
        self._db.execute("RELEASE step")
        return result

    def _checkpoint(self) -> None:
        with suppress(sqlite3.Error):
            self._db.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()


def _is_full(error: Exception) -> bool:
    return isinstance(error, sqlite3.Error) and _primary_code(error) == sqlite3.SQLITE_FULL


def store_error(error: Exception) -> Exception:
    """Return a failure of the file as a `StoreError`. Any other error is a bug and unchanged."""
    if isinstance(error, sqlite3.DatabaseError) and _primary_code(error) in GONE_CODES:
        return StoreGoneError(f"the database is damaged: {error}")
    # Errors of the program, such as a violated constraint, have other classes.
    if isinstance(error, sqlite3.OperationalError | OSError | MemoryError):
        return StoreBusyError(str(error) or type(error).__name__)
    return error


def _primary_code(error: sqlite3.Error) -> int:
    return getattr(error, "sqlite_errorcode", 0) & PRIMARY_CODE_MASK


def no_op(*_: object) -> None:
    """Do nothing: for a write without state in memory."""
