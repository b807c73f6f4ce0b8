"""The database file: its schema, its opening, and access to it.

One runner writes; one thread reads the committed state.

Schema: a change is a new migration at the end of `MIGRATIONS`. The file's `user_version` is the
number of migrations that have been applied to it. `jobs` holds the columns that change, in small
rows, because a take or an end rewrites the whole row; values that can be large are in tables of
their own. Statuses are written and compared as parameters; no statement contains one.

Opening: the file is locked against other processes, checked with its write-ahead log, and migrated
to the newest schema. If its last process has closed it, it is checked in the background instead.
"""

import asyncio
import sqlite3
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, asynccontextmanager, closing, contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from proxy.jobs.webhook import receiver_address
from proxy.store.errors import StoreGoneError, StoreUnavailableError
from proxy.store.sqlite import file_check
from proxy.store.sqlite.disk import Disk, DiskSpace, HeldFile, LockedError
from proxy.store.sqlite.due_deliveries import RECEIVERS_MIGRATION
from proxy.store.sqlite.log_check import HEADER_BYTES, find_damage
from proxy.store.sqlite.reads import BatchReader
from proxy.store.sqlite.served_models import SERVED_MODELS_MIGRATION
from proxy.store.sqlite.writer import (
    FILE_ERRORS,
    FileWatch,
    StartRunner,
    Writer,
    no_op,
    store_error,
)

# Identifies a file of this program, in the header of the SQLite file.
APPLICATION_ID = 0x764C4C4D

MIGRATIONS = (
    """
    CREATE TABLE jobs (
        number            INTEGER PRIMARY KEY,
        id                TEXT NOT NULL UNIQUE,
        endpoint          TEXT NOT NULL,
        owner             TEXT NOT NULL,
        method            TEXT,  -- NULL if the work is an input instead of a request
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
        deliver_at        INTEGER,  -- due time of the webhook delivery; NULL if none
        tries             INTEGER NOT NULL
    ) STRICT;
    CREATE INDEX jobs_recent ON jobs (endpoint, owner, sequence);
    CREATE INDEX jobs_recent_by_status ON jobs (endpoint, owner, status, sequence);
    CREATE INDEX jobs_over ON jobs (finished_at + retention)
        WHERE finished_at IS NOT NULL AND deliver_at IS NULL;
    CREATE INDEX jobs_to_deliver ON jobs (deliver_at) WHERE deliver_at IS NOT NULL;

    CREATE TABLE works (  -- the client's data, until it is no longer needed
        job       INTEGER PRIMARY KEY REFERENCES jobs ON DELETE CASCADE,
        body      BLOB NOT NULL,
        s3_config BLOB
    ) STRICT;

    CREATE TABLE results (  -- the output of a finished job that is a single value
        job    INTEGER PRIMARY KEY REFERENCES jobs ON DELETE CASCADE,
        output BLOB NOT NULL
    ) STRICT;

    CREATE TABLE outputs (  -- the output log of the current attempt
        job    INTEGER NOT NULL REFERENCES jobs ON DELETE CASCADE,
        cursor INTEGER NOT NULL,
        output BLOB NOT NULL,
        PRIMARY KEY (job, cursor)
    ) STRICT, WITHOUT ROWID;

    CREATE TABLE ended (  -- ended jobs by status, and retries, since the file was created
        endpoint TEXT NOT NULL,
        name     TEXT NOT NULL,
        number   INTEGER NOT NULL,
        PRIMARY KEY (endpoint, name)
    ) STRICT, WITHOUT ROWID;
    """,
    # Output of the current attempt was given to a client.
    "ALTER TABLE jobs ADD COLUMN delivered INTEGER NOT NULL DEFAULT 0",
    # The fencing token of the current run. A job that runs when the file is migrated has 0 until
    # the run is adopted.
    "ALTER TABLE jobs ADD COLUMN run INTEGER NOT NULL DEFAULT 0",
    RECEIVERS_MIGRATION,
    SERVED_MODELS_MIGRATION,
    # A job of an older version has no key.
    """
    ALTER TABLE jobs ADD COLUMN key_name TEXT;
    ALTER TABLE jobs ADD COLUMN key_digest BLOB;
    CREATE UNIQUE INDEX jobs_by_key ON jobs (endpoint, owner, key_name)
        WHERE key_name IS NOT NULL;
    """,
    file_check.CLEAN_CLOSE_MIGRATION,
)


# The first version with STRICT tables.
MIN_SQLITE_VERSION = (3, 37, 0)

# Ids are random: with a smaller cache, index pages are read from the file again and again.
PAGE_CACHE_KIB = 16 * 1024

# SQLite truncates its write-ahead log (WAL) to this size after a checkpoint.
WAL_MAX_BYTES = 64 * 1024 * 1024

# Maximum wait for another program that has locked the file, such as a backup.
BUSY_TIMEOUT_SECONDS = 5.0

# The header of a database file.
HEAD_BYTES = 100


class OpenedFile(NamedTuple):
    """The writer's connection, and the file that it was opened on.

    `is_checked`: the whole file was checked, because its last process did not close it.
    """

    db: sqlite3.Connection
    file: HeldFile
    is_checked: bool


@contextmanager
def opened(
    path: Path, disk: Disk, load: Callable[[sqlite3.Connection], None] = no_op
) -> Iterator[OpenedFile]:
    """Open the writer's connection to the file and call `load` with it; create the file if it does
    not exist.

    Raises `StoreUnavailableError`.
    """
    with ExitStack() as stack:
        try:
            disk.make_folder(path.parent)
            file = stack.enter_context(_locked(path, disk))
            has_log = _check_log(path, file, disk)
            db = stack.enter_context(closing(_connect(path)))
            _check_version(db, path)
            is_checked = has_log or not file_check.has_record(db)
            if is_checked and (damage := file_check.find_damage(db, file)):
                raise _damaged(path, damage)
            _prepare(db, path)
            load(db)
        except (OSError, sqlite3.OperationalError) as error:
            raise StoreUnavailableError(
                f"cannot open {path}: {getattr(error, 'strerror', error)}. Check its permissions"
                " and the free space, or choose another file with --store."
            ) from error
        except sqlite3.DatabaseError as error:
            raise _damaged(path, error) from error
        yield OpenedFile(db, file, is_checked)


def reader(path: Path) -> sqlite3.Connection:
    """Open a read-only connection. It sees committed data only."""
    db = sqlite3.connect(
        f"{path.absolute().as_uri()}?mode=ro",
        uri=True,
        isolation_level=None,
        check_same_thread=False,
    )
    db.execute("PRAGMA query_only = ON")
    return db


@contextmanager
def _locked(path: Path, disk: Disk) -> Iterator[HeldFile]:
    """Hold the file, so that no other proxy opens the store under any name.

    Older versions lock only the lock file, and so does every version where the file itself cannot
    be locked.
    """
    with ExitStack() as stack:
        try:
            stack.enter_context(disk.lock(Path(f"{disk.real_path(path)}.lock")))
            file = stack.enter_context(disk.hold(path))
        except LockedError as error:
            holder = error.holder or "unknown"
            raise StoreUnavailableError(
                f"{path} is in use by another proxy (process {holder}). "
                "Stop that proxy, or choose another file with --store."
            ) from None
        yield file


def _check_log(path: Path, file: HeldFile, disk: Disk) -> bool:
    """Reject a write-ahead log that SQLite would silently cut or delete.

    Returns True if the log has any data.
    """
    with suppress(FileNotFoundError), disk.read(Path(f"{disk.real_path(path)}-wal")) as log:
        has_frames = len(log.read(HEADER_BYTES + 1)) > HEADER_BYTES
        log.seek(0)
        head = file.read(0, HEAD_BYTES)
        if head:
            problem = find_damage(log, head)
        else:
            problem = "it is empty, but not its write-ahead log" if has_frames else ""
        if problem:
            raise _damaged(path, problem)
        return has_frames
    return False


def _connect(path: Path) -> sqlite3.Connection:
    if sqlite3.sqlite_version_info < MIN_SQLITE_VERSION:
        needed = ".".join(map(str, MIN_SQLITE_VERSION))
        raise StoreUnavailableError(
            f"SQLite {sqlite3.sqlite_version} of this Python is too old; "
            f"{needed} or newer is required. Use another Python, or --store memory:."
        )
    return sqlite3.connect(
        path, timeout=BUSY_TIMEOUT_SECONDS, isolation_level=None, check_same_thread=False
    )


def _check_version(db: sqlite3.Connection, path: Path) -> None:
    """Reject a file of another program, or of a newer version."""
    version = _query_value(db, "PRAGMA user_version")
    application = _query_value(db, "PRAGMA application_id")
    if application != APPLICATION_ID and _query_value(db, "SELECT count(*) FROM sqlite_schema"):
        raise StoreUnavailableError(
            f"{path} belongs to another program. Choose another file with --store."
        )
    if version > len(MIGRATIONS):
        raise StoreUnavailableError(
            f"{path} was written by a newer version of vllm-serverless. "
            "Use that version, or choose another file with --store."
        )


def _damaged(path: Path, problem: object) -> StoreUnavailableError:
    details = " ".join(str(problem).split())
    return StoreUnavailableError(
        f"{path} is damaged ({details}). Move it away to start with an empty store, or restore "
        "a backup: see docs/durability.md."
    )


def _prepare(db: sqlite3.Connection, path: Path) -> None:
    """Configure the file, then the connection; note that the file is open, and migrate it."""
    if not _query_value(db, "PRAGMA user_version"):
        # Only possible before the first table exists. It lets the file shrink later.
        db.execute("PRAGMA auto_vacuum = INCREMENTAL")
        db.execute(f"PRAGMA application_id = {APPLICATION_ID}")
    if _query_value(db, "PRAGMA journal_mode = WAL") != "wal":
        raise StoreUnavailableError(
            f"{path} is on a file system without support for SQLite's write-ahead log. "
            "Choose another file with --store."
        )
    db.execute("PRAGMA synchronous = FULL")
    # On macOS, flush to the disk itself instead of its cache.
    db.execute("PRAGMA fullfsync = ON")
    db.execute("PRAGMA foreign_keys = ON")
    # Some builds of SQLite overwrite the pages of deleted values with zeros, each in the log and in
    # the file: as many bytes as the values had.
    db.execute("PRAGMA secure_delete = FAST").fetchall()
    db.execute(f"PRAGMA cache_size = -{PAGE_CACHE_KIB}")
    db.execute(f"PRAGMA journal_size_limit = {WAL_MAX_BYTES}").fetchall()
    file_check.delete_record(db)
    db.create_function("receiver_address", 1, receiver_address, deterministic=True)
    for version in range(_query_value(db, "PRAGMA user_version"), len(MIGRATIONS)):
        db.executescript(
            f"BEGIN; {MIGRATIONS[version]}; PRAGMA user_version = {version + 1}; COMMIT;"
        )


def _query_value(db: sqlite3.Connection, sql: str) -> Any:
    [[value]] = db.execute(sql).fetchall()
    return value


T = TypeVar("T")


class Database:
    """The reading and the writing connection of `SqliteStore`."""

    _writer: Writer
    _reader: BatchReader

    def __init__(self, path: Path, disk: Disk, start_runner: StartRunner) -> None:
        self._path = path
        self._disk = disk
        self._start_runner = start_runner
        self._watch = FileWatch()
        self.disk_space = DiskSpace(Path(f"{disk.real_path(path)}.ballast"), disk)

    @property
    def commits(self) -> int:
        """The number of committed transactions since the file was opened."""
        return self._writer.commits

    @property
    def gone(self) -> str:
        """The reason why the file can no longer be used; empty while it can."""
        return self._watch.gone

    def require(self) -> None:
        """Raise `StoreGoneError` if the file can no longer be used."""
        self._watch.require()

    async def until_gone(self) -> str:
        """Wait until the file can no longer be used; return the reason."""
        return await self._watch.until_gone()

    @asynccontextmanager
    async def open(self, load: Callable[[sqlite3.Connection], None]) -> AsyncIterator[None]:
        """Open the file, call `load` with the connection, and start the writer.

        Leaving the context commits the queued writes and closes the file. Raises
        `StoreUnavailableError`.
        """
        with ExitStack() as stack:

            def begin() -> OpenedFile:
                return stack.enter_context(opened(self._path, self._disk, load))

            # In a thread, because reading a large file takes time.
            db, file, is_checked = await asyncio.to_thread(begin)
            self._watch.begin(file)
            reading = stack.enter_context(closing(reader(self._path)))
            pool = stack.enter_context(ThreadPoolExecutor(1, "store reader"))
            self._reader = BatchReader(reading, pool)
            self._writer = Writer(db, self.disk_space, self._watch, self._start_runner)
            self._writer.start()
            watching = asyncio.create_task(self._watch.serve(), name="file watch")
            check = file_check.BackgroundCheck(self._watch, self._disk, file)
            if not is_checked:
                check.start(stack.enter_context(closing(reader(self._path))))
            try:
                yield
            finally:
                await self._writer.close()
                await self._reader.close()
                await check.close()
                self._watch.close()
                await watching
                if not self.gone and not check.has_failed:
                    file_check.write_record(db)

    async def read(self, query: Callable[[sqlite3.Connection], T]) -> T:
        """Run a query in the reader's thread and return its result. Raises `StoreError`."""
        self._watch.require()
        try:
            return await self._reader.read(query)
        except FILE_ERRORS as error:
            found = store_error(error)
            if isinstance(found, StoreGoneError):
                self._watch.give_up(str(found))
            raise found from error

    async def write(
        self,
        run: Callable[[sqlite3.Connection], T],
        apply: Callable[[T], None] = no_op,
        undo: Callable[[], None] = no_op,
        size: int = 0,
    ) -> T:
        """Run a write and return its result after the commit; see `Writer.do`.

        Raises `StoreError`.
        """
        self._watch.require()
        return await self._writer.do(run, apply, undo, size)
