"""The whole file is checked before it is used, unless its last process has closed it."""

import asyncio
import os
import shutil
import sqlite3
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from pathlib import Path
from sqlite3 import Connection

import pytest
from harness.data.damage import damage_bodies, damage_jobs, make_file
from harness.data.jobs import submission
from harness.data.store_steps import T0, sqlite_store
from harness.tools.waiting import until

from proxy.store.errors import StoreUnavailableError
from proxy.store.sqlite.database import opened, reader
from proxy.store.sqlite.file_check import BackgroundCheck, find_damage, has_record
from proxy.store.sqlite.writer import FileWatch
from proxy.system import SystemDisk


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "jobs.db"


async def refusal(path: Path) -> str:
    """Return the message of the failed opening."""
    with pytest.raises(StoreUnavailableError) as refused:
        async with sqlite_store(path).open():
            pass
    return str(refused.value)


def is_closed(path: Path) -> bool:
    with closing(sqlite3.connect(path)) as db:
        return has_record(db)


# The record


async def test_a_closed_file_is_opened_without_a_check(path: Path) -> None:
    await make_file(path)
    assert is_closed(path)
    damage_bodies(path)
    for _ in range(2):
        async with sqlite_store(path).open():
            pass


async def test_a_killed_process_leaves_no_record(path: Path, tmp_path: Path) -> None:
    """Not even in the file alone, if its log is deleted; and before any other write."""
    await make_file(path)
    for name in ("with-log", "alone"):
        (tmp_path / name).mkdir()
    async with sqlite_store(path).open():
        for copy in (tmp_path / "with-log", tmp_path / "alone"):
            shutil.copy(path, copy)
        shutil.copy(tmp_path / "jobs.db-wal", tmp_path / "with-log")
    for copy in (tmp_path / "with-log", tmp_path / "alone"):
        assert not is_closed(copy / "jobs.db")
        damage_bodies(copy / "jobs.db")
        assert "damaged" in await refusal(copy / "jobs.db")


async def test_a_log_counts_more_than_the_record(path: Path, tmp_path: Path) -> None:
    """A process that is killed while it closes the file may have written the record."""
    await make_file(path)
    copy = tmp_path / "copy"
    copy.mkdir()
    store = sqlite_store(path)
    async with store.open():
        await store.submit(submission("late"), T0)
        # Keeps the log when the store is closed.
        other = sqlite3.connect(path)
        other.execute("SELECT * FROM jobs").fetchall()
    for name in ("jobs.db", "jobs.db-wal"):
        shutil.copy(tmp_path / name, copy)
    other.close()
    shutil.copytree(copy, tmp_path / "second")
    assert is_closed(tmp_path / "second" / "jobs.db")
    damage_bodies(copy / "jobs.db")
    assert "damaged" in await refusal(copy / "jobs.db")


async def test_a_copy_of_a_file_in_use_has_no_record(path: Path, tmp_path: Path) -> None:
    await make_file(path)
    async with sqlite_store(path).open():
        with closing(sqlite3.connect(path)) as other:
            other.execute("VACUUM INTO ?", (str(tmp_path / "copy.db"),))
    assert not is_closed(tmp_path / "copy.db")


async def test_damage_that_the_start_meets_is_reported(path: Path) -> None:
    """Some pages are read when the file is opened."""
    await make_file(path)
    damage_jobs(path)
    assert "is damaged" in await refusal(path)
    assert not is_closed(path)


# The check in the background


@contextmanager
def checking(path: Path) -> Iterator[tuple[BackgroundCheck, Connection, FileWatch]]:
    """Yield a check, its connection, and the watch of the open file that the check reports to."""
    watch = FileWatch()
    with opened(path, SystemDisk()) as (_, file, is_checked), closing(reader(path)) as db:
        assert not is_checked
        watch.begin(file)
        yield BackgroundCheck(watch, SystemDisk(), file), db, watch


async def test_damage_is_found_in_the_background(path: Path) -> None:
    await make_file(path)
    damage_bodies(path)
    with checking(path) as (check, db, watch):
        check.start(db, delay=0)
        async with asyncio.timeout(10):
            assert "damaged" in await watch.until_gone()
        await check.close()
    # The next start does not use the file.
    assert not is_closed(path)
    assert "is damaged" in await refusal(path)


async def test_the_check_stops_at_once_when_the_store_is_closed(path: Path) -> None:
    await make_file(path)
    is_running = threading.Event()
    may_go_on = threading.Event()
    calls = 0

    def progress() -> int:
        nonlocal calls
        calls += 1
        is_running.set()
        may_go_on.wait(10)
        return 0

    with checking(path) as (check, db, watch):
        db.set_progress_handler(progress, 1)
        may_go_on.set()
        assert find_damage(db, check._file) == ""
        calls_of_a_whole_check = calls
        calls = 0
        is_running.clear()
        may_go_on.clear()
        check.start(db, delay=0)
        assert await asyncio.to_thread(is_running.wait, 10)
        closing_check = asyncio.create_task(check.close())
        # Until it has interrupted the connection.
        await asyncio.sleep(0)
        may_go_on.set()
        await closing_check
        assert calls < calls_of_a_whole_check / 10
        assert not watch.gone
        assert not check.has_failed
    assert "store check" not in {thread.name[:11] for thread in threading.enumerate()}


async def test_a_check_that_is_closed_before_its_time_does_not_run(path: Path) -> None:
    await make_file(path)
    damage_bodies(path)
    with checking(path) as (check, db, watch):
        check.start(db)
        await check.close()
        assert not watch.gone
        assert not check.has_failed


async def test_a_file_that_could_not_be_checked_stays_in_use(path: Path) -> None:
    await make_file(path)
    with checking(path) as (check, db, watch):
        db.close()
        check.start(db, delay=0)
        await until(lambda: check.has_failed, what="the check has failed")
        await check.close()
        assert not watch.gone


@pytest.mark.skipif(sys.platform != "linux", reason="other systems have no priority of threads")
async def test_the_thread_of_the_check_has_a_low_priority() -> None:
    def lowered() -> int:
        SystemDisk().lower_priority()
        return os.getpriority(os.PRIO_PROCESS, threading.get_native_id())

    before = os.getpriority(os.PRIO_PROCESS, 0)
    with ThreadPoolExecutor(1) as thread:
        assert await asyncio.get_running_loop().run_in_executor(thread, lowered) == max(10, before)
    assert os.getpriority(os.PRIO_PROCESS, 0) == before
