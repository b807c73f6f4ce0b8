"""The file: opened by one process at a time, looked at before it is used, brought to the newest schema."""

import sqlite3
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from typing import Any

from proxy.store.base import StoreUnavailableError
from proxy.store.sqlite.disk import Disk, LockedError
from proxy.store.sqlite.schema import APPLICATION_ID, MIGRATIONS

OLDEST_SQLITE = (3, 37, 0)  # STRICT tables
CACHE_KIB = 16 * 1024  # of pages in memory: random ids would otherwise be read from the file again and again
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
            raise StoreUnavailableError(f"cannot open {path}: {getattr(error, 'strerror', error)}.") from error
        except sqlite3.DatabaseError as error:
            raise _damaged(path, error) from error
        yield db


def reader(path: Path) -> sqlite3.Connection:
    """A connection that sees what is committed, and cannot write."""
    db = sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True, isolation_level=None, check_same_thread=False)
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
    return sqlite3.connect(path, timeout=BUSY_SECONDS, isolation_level=None, check_same_thread=False)


def _check(db: sqlite3.Connection, path: Path) -> None:
    """Refuse what is not ours, not known yet, or not whole."""
    version, application = _ask(db, "PRAGMA user_version"), _ask(db, "PRAGMA application_id")
    if application != APPLICATION_ID and _ask(db, "SELECT count(*) FROM sqlite_schema"):
        raise StoreUnavailableError(f"{path} belongs to another program. Give another --store.")
    if version > len(MIGRATIONS):
        message = f"{path} was written by a newer vllm-serverless. Use that one, or give another --store."
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
        db.execute("PRAGMA auto_vacuum = INCREMENTAL")  # before the first table: it can be made smaller later on
        db.execute(f"PRAGMA application_id = {APPLICATION_ID}")
    if _ask(db, "PRAGMA journal_mode = WAL") != "wal":
        raise StoreUnavailableError(f"{path} is on a file system that SQLite cannot use well. Give another --store.")
    db.execute("PRAGMA synchronous = FULL")
    db.execute("PRAGMA fullfsync = ON")  # macOS: down to the disk, not to its cache
    db.execute("PRAGMA foreign_keys = ON")
    db.execute(f"PRAGMA cache_size = -{CACHE_KIB}")
    db.execute(f"PRAGMA journal_size_limit = {LOG_BYTES}").fetchall()
    for version in range(_ask(db, "PRAGMA user_version"), len(MIGRATIONS)):
        db.executescript(f"BEGIN; {MIGRATIONS[version]}; PRAGMA user_version = {version + 1}; COMMIT;")


def _ask(db: sqlite3.Connection, question: str) -> Any:
    [[answer]] = db.execute(question).fetchall()
    return answer
