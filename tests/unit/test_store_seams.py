"""The store runs with a substituted writer thread and with substituted file operations."""

import asyncio
import sqlite3
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import BinaryIO

import pytest
from harness.data.jobs import submission
from harness.data.store_steps import T0, ended, ids, take

from proxy.jobs.lifecycle import Event
from proxy.jobs.model import JobId
from proxy.store.errors import StoreFullError, StoreGoneError, StoreUnavailableError
from proxy.store.sqlite import database
from proxy.store.sqlite.disk import DiskSpace, LockedError, Space
from proxy.store.sqlite.store import SqliteStore
from proxy.store.sqlite.writer import MAX_WRITES_PER_COMMIT, FileWatch, Writer
from proxy.system import SystemDisk

GIGABYTE = 1_000_000_000


class InlineRunner:
    """Calls each step as a callback of the event loop."""

    def __init__(self, step: Callable[[], bool]) -> None:
        self._step = step

    def wake(self) -> None:
        asyncio.get_running_loop().call_soon(self._step)

    def join(self) -> None:
        """Do nothing: steps run on the event loop, so no step is running."""


class MemoryFile:
    """`HeldFile` that is gone when the test says so."""

    def __init__(self) -> None:
        self.reason = ""

    def read(self, start: int, size: int) -> bytes:  # noqa: ARG002 - a new file
        return b""

    def loss(self) -> str:
        return self.reason


class MemoryDisk:
    """`Disk` that stores only the sizes of files, and the names of locks."""

    def __init__(self, free: int = GIGABYTE) -> None:
        self.free = free
        self.files: dict[Path, int] = {}
        self.locks: dict[Path, str] = {}
        self.held = MemoryFile()

    def make_folder(self, folder: Path) -> None:
        """Do nothing: every folder exists."""

    def real_path(self, path: Path) -> Path:
        return path

    @contextmanager
    def hold(self, path: Path) -> Iterator[MemoryFile]:
        with self.lock(path):
            yield self.held

    def read(self, path: Path) -> AbstractContextManager[BinaryIO]:
        raise FileNotFoundError(path)

    @contextmanager
    def lock(self, path: Path) -> Iterator[None]:
        if path in self.locks:
            raise LockedError(self.locks[path])
        self.locks[path] = "1"
        yield
        del self.locks[path]

    def space(self, folder: Path) -> Space:  # noqa: ARG002 - one file system
        return Space(self.free, 100 * GIGABYTE)

    def exists(self, path: Path) -> bool:
        return path in self.files

    def allocate(self, path: Path, size: int) -> None:
        self.files[path] = size
        self.free -= size

    def remove(self, path: Path) -> None:
        self.free += self.files.pop(path)

    def lower_priority(self) -> None:
        """Do nothing: a new file needs no check in the background."""


async def test_a_writer_on_the_event_loop_commits_in_order(tmp_path: Path) -> None:
    # Fixtures of other tests can have stores of their own in this process.
    before = set(threading.enumerate())
    applied: list[int] = []
    undone: list[int] = []
    number = MAX_WRITES_PER_COMMIT * 2 + 1
    with database.opened(tmp_path / "jobs.db", SystemDisk()) as (db, file, _):
        db.execute("CREATE TABLE numbers (number INTEGER UNIQUE)")
        space = DiskSpace(tmp_path / "ballast", MemoryDisk())
        watch = FileWatch()
        watch.begin(file)
        writer = Writer(db, space, watch, InlineRunner)
        writer.start()

        async def write(one: int) -> int:
            return await writer.do(
                lambda db: db.execute("INSERT INTO numbers VALUES (?)", (one,)).rowcount,
                lambda _: applied.append(one),
                lambda: undone.append(one),
                0,
            )

        results = await asyncio.gather(*map(write, [*range(number), 0]), return_exceptions=True)
        assert writer.commits == 3
        late = asyncio.create_task(write(number))
        # Until the write is queued.
        await asyncio.sleep(0)
        await writer.close()
        assert await late == 1
        rows = [row[0] for row in db.execute("SELECT number FROM numbers ORDER BY rowid")]
    assert results[:-1] == [1] * number
    assert isinstance(results[-1], sqlite3.IntegrityError)
    assert rows == applied == [*range(number + 1)]
    assert undone == [0]
    new = set(threading.enumerate()) - before
    assert "store writer" not in {thread.name for thread in new}


async def test_a_store_uses_the_free_space_that_its_disk_reports(tmp_path: Path) -> None:
    disk = MemoryDisk()
    ballast = tmp_path / "jobs.db.ballast"
    store = SqliteStore(tmp_path / "jobs.db", disk, InlineRunner)
    async with store.open():
        await store.submit(submission("first"), T0)
        assert disk.exists(ballast)
        disk.free = 0
        with pytest.raises(StoreFullError):
            await store.submit(submission("second"), T0)
        taken = await take(store)
        assert ids(taken) == ["first"]
        await ended(store, taken[0], Event.COMPLETE, output=b"1")
        disk.free = GIGABYTE
        await store.submit(submission("second"), T0)
        assert ids(await take(store)) == ["second"]
    assert not ballast.exists()


async def test_a_store_names_the_process_that_holds_its_lock(tmp_path: Path) -> None:
    disk = MemoryDisk()
    disk.locks[tmp_path / "jobs.db.lock"] = "4711"
    store = SqliteStore(tmp_path / "jobs.db", disk, InlineRunner)
    with pytest.raises(StoreUnavailableError, match=r"in use by another proxy \(process 4711\)"):
        async with store.open():
            pass


async def test_a_store_is_gone_when_its_disk_says_so(tmp_path: Path) -> None:
    disk = MemoryDisk()
    store = SqliteStore(tmp_path / "jobs.db", disk, InlineRunner)
    assert not store.gone
    async with store.open():
        await store.submit(submission("first"), T0)
        disk.held.reason = "the file is not there"
        with pytest.raises(StoreGoneError, match="the file is not there"):
            await store.submit(submission("second"), T0)
        # It does not come back.
        disk.held.reason = ""
        with pytest.raises(StoreGoneError, match="the file is not there"):
            await store.find(JobId("first"))
        assert await take(store) == []
        assert await store.until_gone() == store.gone == "the file is not there"
