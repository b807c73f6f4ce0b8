"""The check of the whole database file, and the record that its last process has closed it.

The check reads the whole file. It is needed before the proxy serves only if the last process did
not close the file: after a crash, or a loss of power. After a clean close, damage is as rare as
while the proxy runs, so the check runs in the background, in a thread and with a connection of its
own. A file that it finds damaged is gone for good.

The record is a row in the table `clean_close`. It is the last write of a process. Opening the file
deletes it, in a transaction that is committed, and copied from the write-ahead log to the file,
before any other write. So a file with a record and without a log was closed by its last process,
also if someone has deleted the log of a process that crashed.
"""

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from sqlite3 import Connection

import structlog

from proxy.store.errors import StoreGoneError
from proxy.store.sqlite.disk import Disk, HeldFile
from proxy.store.sqlite.writer import FILE_ERRORS, FileWatch, store_error

log = structlog.get_logger()

CLEAN_CLOSE_MIGRATION = "CREATE TABLE clean_close (number INTEGER PRIMARY KEY) STRICT"

# The start of the proxy reads the file too, and its workers reconnect.
DELAY_SECONDS = 3.0

READ_AHEAD_BYTES = 1024 * 1024

# SQLite ignores an interrupt that comes before its statement has begun, so it is repeated.
INTERRUPT_SECONDS = 0.05


def find_damage(
    db: Connection, file: HeldFile, is_stopped: Callable[[], bool] = lambda: False
) -> str:
    """Check the structure of the whole file; return the first damage, or an empty string.

    `is_stopped`: returns True if the check may be left undone, and the connection is interrupted.
    """
    # SQLite reads the pages in another order. From a disk, that takes ten times as long as this.
    start = 0
    while not is_stopped() and (block := file.read(start, READ_AHEAD_BYTES)):
        start += len(block)
    [[found]] = db.execute("PRAGMA quick_check(1)").fetchall()
    return "" if found == "ok" else str(found)


def has_record(db: Connection) -> bool:
    """Return True if a process has recorded that it closed the file."""
    schema = "SELECT count(*) FROM sqlite_schema WHERE name = 'clean_close'"
    [[has_table]] = db.execute(schema).fetchall()
    # A file of an older version does not have the table.
    return bool(has_table and db.execute("SELECT * FROM clean_close").fetchall())


def delete_record(db: Connection) -> None:
    """Delete the record from the file, before any other write."""
    if has_record(db):
        db.execute("DELETE FROM clean_close")
        db.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchall()


def write_record(db: Connection) -> None:
    """Record that the file is closed, or let the next start check the file.

    Everything else is copied to the file before. The record could be in the file without it, if the
    process ended while SQLite copies both, and someone deleted the log.
    """
    with suppress(*FILE_ERRORS):
        [[is_busy, pages, copied]] = db.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchall()
        if not is_busy and copied == pages:
            db.execute("INSERT INTO clean_close VALUES (1)")


class BackgroundCheck:
    """The check of a file that its last process has closed.

    Attributes:
        has_failed: the file could not be checked, so the next start has to do it.

    """

    _db: Connection

    def __init__(self, watch: FileWatch, disk: Disk, file: HeldFile) -> None:
        self._watch = watch
        self._disk = disk
        self._file = file
        self._is_closing = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self.has_failed = False

    def start(self, db: Connection, delay: float = DELAY_SECONDS) -> None:
        """Check the file after `delay` seconds, through a connection that nothing else uses."""
        self._db = db
        self._task = asyncio.create_task(self._run(delay), name="file check")

    async def close(self) -> None:
        """Stop the check; return when its thread no longer uses the connection."""
        self._is_closing.set()
        while self._task is not None and not self._task.done():
            self._db.interrupt()
            await asyncio.wait([self._task], timeout=INTERRUPT_SECONDS)

    async def _run(self, delay: float) -> None:
        with suppress(TimeoutError):
            async with asyncio.timeout(delay):
                await self._is_closing.wait()
                return
        damage = await self._find_damage()
        if damage:
            self._watch.give_up(f"the database is damaged: {' '.join(damage.split())}")

    async def _find_damage(self) -> str:
        loop = asyncio.get_running_loop()
        with ThreadPoolExecutor(1, "store check", self._disk.lower_priority) as thread:
            try:
                return await loop.run_in_executor(
                    thread, find_damage, self._db, self._file, self._is_closing.is_set
                )
            except FILE_ERRORS as error:
                found = store_error(error)
        if isinstance(found, StoreGoneError):
            return str(found)
        if not self._is_closing.is_set():
            self.has_failed = True
            log.warning("store.check_failed", why=str(found))
        return ""
