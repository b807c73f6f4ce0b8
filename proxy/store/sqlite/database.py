"""The open file: one runner that writes, and one thread that reads what is committed.

The tables. A change is one more migration at the end; a file's `user_version` says how many it has had.

`jobs` has what changes, in small rows: a take or an end rewrites its row, so what can be large lies in tables of its
own. Statuses are written and compared as parameters; no statement spells one.

The file: opened by one process at a time, looked at before it is used, brought to the newest schema.
"""

import asyncio
import sqlite3
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, asynccontextmanager, closing, contextmanager
from pathlib import Path
from typing import Any, TypeVar

from proxy.store.base import StoreUnavailableError
from proxy.store.sqlite.disk import Disk, LockedError
from proxy.store.sqlite.disk_space import DiskSpace
from proxy.store.sqlite.writer import StartRunner, Writer, nothing

APPLICATION_ID = 0x764C4C4D  # in the file's header: it is ours

MIGRATIONS = (
    """
    CREATE TABLE jobs (
        number            INTEGER PRIMARY KEY,
        id                TEXT NOT NULL UNIQUE,
        endpoint          TEXT NOT NULL,
        owner             TEXT NOT NULL,
        method            TEXT,  -- NULL: the work is an input, not a request
        path              TEXT,
        content_type      TEXT,
        light             INTEGER NOT NULL,
        low_priority      INTEGER NOT NULL,
        queued_until      INTEGER,
        expires_at        INTEGER,
        execution_timeout INTEGER NOT NULL,
        retention         INTEGER NOT NULL,
        webhook           TEXT,
        sequence          INTEGER NOT NULL,
        status            TEXT NOT NULL,
        created_at        INTEGER NOT NULL,
        attempt           INTEGER NOT NULL,
        failures          INTEGER NOT NULL,
        retries           INTEGER NOT NULL,
        worker            TEXT,
        taken_at          INTEGER,
        finished_at       INTEGER,
        error_code        TEXT,
        error_message     TEXT,
        drained           INTEGER NOT NULL,
        last_event        TEXT,
        deliver_at        INTEGER,  -- when its delivery is due; NULL: it has none
        tries             INTEGER NOT NULL
    ) STRICT;
    CREATE INDEX jobs_recent ON jobs (endpoint, owner, sequence);
    CREATE INDEX jobs_recent_by_status ON jobs (endpoint, owner, status, sequence);
    CREATE INDEX jobs_over ON jobs (finished_at + retention) WHERE finished_at IS NOT NULL AND deliver_at IS NULL;
    CREATE INDEX jobs_to_deliver ON jobs (deliver_at) WHERE deliver_at IS NOT NULL;

    CREATE TABLE works (  -- what the client sent, as long as anybody can ask for it
        job       INTEGER PRIMARY KEY REFERENCES jobs ON DELETE CASCADE,
        body      BLOB NOT NULL,
        s3_config BLOB
    ) STRICT;

    CREATE TABLE results (  -- the output of a finished job, where it is one value
        job    INTEGER PRIMARY KEY REFERENCES jobs ON DELETE CASCADE,
        output BLOB NOT NULL
    ) STRICT;

    CREATE TABLE outputs (  -- the log of the current attempt
        job    INTEGER NOT NULL REFERENCES jobs ON DELETE CASCADE,
        cursor INTEGER NOT NULL,
        output BLOB NOT NULL,
        PRIMARY KEY (job, cursor)
    ) STRICT, WITHOUT ROWID;

    CREATE TABLE ended (  -- how many jobs have ended how, and how many were retried, since the file was made
        endpoint TEXT NOT NULL,
        name     TEXT NOT NULL,
        number   INTEGER NOT NULL,
        PRIMARY KEY (endpoint, name)
    ) STRICT, WITHOUT ROWID;
    """,
)


OLDEST_SQLITE = (3, 37, 0)  # STRICT tables
CACHE_KIB = (
    16 * 1024
)  # of pages in memory: random ids would otherwise be read from the file again and again
LOG_BYTES = 64 * 1024 * 1024  # SQLite's log shrinks to this once it was put away
BUSY_SECONDS = 5.0  # that another program, such as a backup, may keep the file for itself


@contextmanager
def opened(path: Path, disk: Disk) -> Iterator[sqlite3.Connection]:
    """The writer's connection to the file, which is made if it is missing. Raises `StoreUnavailableError`."""
    with ExitStack() as stack:
        try:
            disk.make_folder(path.parent)
            stack.enter_context(_locked(path, disk))
            db = stack.enter_context(closing(_connect(path, disk)))
            _check(db, path)
            _prepare(db, path)
        except (OSError, sqlite3.OperationalError) as error:
            raise StoreUnavailableError(
                f"cannot open {path}: {getattr(error, 'strerror', error)}."
            ) from error
        except sqlite3.DatabaseError as error:
            raise _damaged(path, error) from error
        yield db


def reader(path: Path) -> sqlite3.Connection:
    """A connection that sees what is committed, and cannot write."""
    db = sqlite3.connect(
        f"{path.absolute().as_uri()}?mode=ro",
        uri=True,
        isolation_level=None,
        check_same_thread=False,
    )
    db.execute("PRAGMA query_only = ON")
    return db


@contextmanager
def _locked(path: Path, disk: Disk) -> Iterator[None]:
    """Keep every other process away."""
    with ExitStack() as stack:
        try:
            stack.enter_context(disk.lock(Path(f"{path}.lock")))
        except LockedError as error:
            who = error.holder or "unknown"
            message = f"{path} is in use by another proxy (process {who}). Stop that one, or give another --store."
            raise StoreUnavailableError(message) from None
        yield


def _connect(path: Path, disk: Disk) -> sqlite3.Connection:
    if sqlite3.sqlite_version_info < OLDEST_SQLITE:
        needed = ".".join(map(str, OLDEST_SQLITE))
        message = f"this Python has SQLite {sqlite3.sqlite_version}, and {needed} is needed: use another, or memory:."
        raise StoreUnavailableError(message)
    disk.make_file(path)  # before SQLite does, which would let others read it
    return sqlite3.connect(
        path, timeout=BUSY_SECONDS, isolation_level=None, check_same_thread=False
    )


def _check(db: sqlite3.Connection, path: Path) -> None:
    """Refuse what is not ours, not known yet, or not whole."""
    version, application = _ask(db, "PRAGMA user_version"), _ask(db, "PRAGMA application_id")
    if application != APPLICATION_ID and _ask(db, "SELECT count(*) FROM sqlite_schema"):
        raise StoreUnavailableError(f"{path} belongs to another program. Give another --store.")
    if version > len(MIGRATIONS):
        message = (
            f"{path} was written by a newer vllm-serverless. Use that one, or give another --store."
        )
        raise StoreUnavailableError(message)
    problem = _ask(db, "PRAGMA quick_check(1)")
    if problem != "ok":
        raise _damaged(path, problem)


def _damaged(path: Path, problem: object) -> StoreUnavailableError:
    what = " ".join(str(problem).split())
    return StoreUnavailableError(
        f"{path} is damaged ({what}). Move it away to begin anew, or put a backup in its place: see docs/durability.md."
    )


def _prepare(db: sqlite3.Connection, path: Path) -> None:
    """Set what is the file's, then what is the connection's, then run the migrations that it has not had."""
    if not _ask(db, "PRAGMA user_version"):
        db.execute(
            "PRAGMA auto_vacuum = INCREMENTAL"
        )  # before the first table: it can be made smaller later on
        db.execute(f"PRAGMA application_id = {APPLICATION_ID}")
    if _ask(db, "PRAGMA journal_mode = WAL") != "wal":
        raise StoreUnavailableError(
            f"{path} is on a file system that SQLite cannot use well. Give another --store."
        )
    db.execute("PRAGMA synchronous = FULL")
    db.execute("PRAGMA fullfsync = ON")  # macOS: down to the disk, not to its cache
    db.execute("PRAGMA foreign_keys = ON")
    db.execute(f"PRAGMA cache_size = -{CACHE_KIB}")
    db.execute(f"PRAGMA journal_size_limit = {LOG_BYTES}").fetchall()
    for version in range(_ask(db, "PRAGMA user_version"), len(MIGRATIONS)):
        db.executescript(
            f"BEGIN; {MIGRATIONS[version]}; PRAGMA user_version = {version + 1}; COMMIT;"
        )


def _ask(db: sqlite3.Connection, question: str) -> Any:
    [[answer]] = db.execute(question).fetchall()
    return answer


T = TypeVar("T")


class Database:
    """What `SqliteStore` reads and writes through."""

    _writer: Writer
    _reader: sqlite3.Connection
    _pool: ThreadPoolExecutor

    def __init__(self, path: Path, disk: Disk, start_runner: StartRunner) -> None:
        self._path = path
        self._disk = disk
        self._start_runner = start_runner
        self.room = DiskSpace(Path(f"{path}.ballast"), disk)

    @property
    def commits(self) -> int:
        """How many transactions were committed since it was opened."""
        return self._writer.commits

    @asynccontextmanager
    async def open(self, load: Callable[[sqlite3.Connection], None]) -> AsyncIterator[None]:
        """Open the file, `load` from it, and start to write. Leaving writes what waits and closes everything."""
        with ExitStack() as stack:

            def begin() -> sqlite3.Connection:
                db = stack.enter_context(opened(self._path, self._disk))
                load(db)
                return db

            db = await asyncio.to_thread(begin)  # a big file is looked at for a while
            self._reader = stack.enter_context(closing(reader(self._path)))
            self._pool = stack.enter_context(ThreadPoolExecutor(1, "store reader"))
            self._writer = Writer(db, self.room, self._start_runner)
            self._writer.start()
            try:
                yield
            finally:
                await self._writer.close()

    async def read(self, look: Callable[[sqlite3.Connection], T]) -> T:
        """What this finds."""
        return await asyncio.get_running_loop().run_in_executor(self._pool, look, self._reader)

    async def write(
        self,
        run: Callable[[sqlite3.Connection], T],
        apply: Callable[[T], None] = nothing,
        undo: Callable[[], None] = nothing,
        size: int = 0,
    ) -> T:
        """What this gives once it is on the disk; see `Writer.do`."""
        return await self._writer.do(run, apply, undo, size)
