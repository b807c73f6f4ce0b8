"""A full disk.

New jobs are rejected before the disk is full, and existing jobs can end even when it is full.
"""

import asyncio
import os
import sqlite3
import subprocess
from collections.abc import Iterator
from contextlib import closing, suppress
from pathlib import Path

import pytest
from harness.data.jobs import HERE, submission
from harness.data.store_steps import RUN, T0, ended, found, ids, sqlite_store, take

from proxy.jobs.lifecycle import Event, Status
from proxy.jobs.model import Input, JobId
from proxy.store.errors import StoreFullError
from proxy.store.sqlite.database import opened
from proxy.store.sqlite.disk import DiskSpace
from proxy.store.sqlite.store import SqliteStore
from proxy.store.sqlite.writer import FileWatch, Writer, no_op
from proxy.system import SystemDisk, ThreadRunner

MEGABYTE = 1_000_000


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 300 MB, of which 250 MB are used."""
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=300m", "tmpfs", str(tmp_path)],
        capture_output=True,
        check=False,
    )
    if mounted.returncode:
        pytest.skip("needs root, to mount a disk of 300 MB")
    fill(tmp_path / "used", 250 * MEGABYTE)
    yield tmp_path
    subprocess.run(["umount", str(tmp_path)], check=True)


def fill(path: Path, size: int = 400 * MEGABYTE) -> None:
    """Fill a disk with a file of `size` bytes, or of all free space if that is less."""
    with suppress(OSError), path.open("wb", buffering=0) as file:
        for _ in range(0, size, MEGABYTE // 10):
            file.write(bytes(MEGABYTE // 10))


async def submit_until_full(store: SqliteStore, name: str) -> list[str]:
    submitted: list[str] = []
    with pytest.raises(StoreFullError):
        while True:
            job_id = f"{name}-{len(submitted)}"
            await store.submit(submission(job_id, work=Input(bytes(100_000))), T0)
            submitted.append(job_id)
    return submitted


async def test_a_full_disk_loses_no_jobs_and_recovers(small_disk: Path) -> None:
    path = small_disk / "jobs.db"
    other = small_disk / "other"
    more = small_disk / "more"
    store = sqlite_store(path)
    async with store.open():
        fill(other, 30 * MEGABYTE)
        submitted = await submit_until_full(store, "a")
        assert len(submitted) > 10
        assert (small_disk / "jobs.db.ballast").exists()
        taken = await take(store, limit=5)
        assert await store.submit(submission(submitted[0]), T0) == taken[0]

        fill(more)
        # These writes use the space of the ballast.
        for job in taken:
            await ended(store, job, Event.COMPLETE, output=bytes(MEGABYTE))
        assert not (small_disk / "jobs.db.ballast").exists()
        with pytest.raises(StoreFullError):
            await store.submit(submission("late"), T0)

        other.unlink()
        more.unlink()
        await store.submit(submission("late"), T0)
        assert (small_disk / "jobs.db.ballast").exists()
    store = sqlite_store(path)
    async with store.open():
        for job_id in submitted[:5]:
            job = await found(store, job_id)
            assert (job.status, job.output) == (Status.COMPLETED, bytes(MEGABYTE))
        assert ids(await take(store, limit=999)) == [*submitted[5:], "late"]


def free(folder: Path) -> int:
    """Return the free bytes of the file system."""
    disk = os.statvfs(folder)
    return disk.f_bavail * disk.f_frsize


async def test_concurrent_submits_do_not_use_the_reserve(small_disk: Path) -> None:
    store = sqlite_store(small_disk / "jobs.db")
    async with store.open():
        large = [submission(f"{number}", work=Input(bytes(10 * MEGABYTE))) for number in range(9)]
        results = await asyncio.gather(
            *(store.submit(one, T0) for one in large), return_exceptions=True
        )
        refused = [result for result in results if isinstance(result, StoreFullError)]
        assert 0 < len(refused) < len(large)
        disk = os.statvfs(small_disk)
        assert free(small_disk) > disk.f_blocks * disk.f_frsize // 20 // 2
        assert (await store.counts(HERE)).in_queue == len(large) - len(refused)


async def test_a_write_that_is_too_large_uses_no_space(small_disk: Path) -> None:
    store = sqlite_store(small_disk / "jobs.db")
    async with store.open():
        await store.submit(submission("large"), T0)
        await store.submit(submission("small"), T0)
        await take(store)
        before = free(small_disk)
        large, small = await asyncio.gather(
            store.append(JobId("large"), RUN, [bytes(before + 50 * MEGABYTE)]),
            store.append(JobId("small"), RUN, [b"small"]),
            return_exceptions=True,
        )
        assert isinstance(large, StoreFullError)
        assert small == 1
        assert free(small_disk) > before - MEGABYTE


async def test_no_job_is_lost_while_no_write_is_possible(small_disk: Path) -> None:
    path = small_disk / "jobs.db"
    other = small_disk / "other"
    store = sqlite_store(path)
    async with store.open():
        fill(other, 30 * MEGABYTE)
        submitted = await submit_until_full(store, "a")
        [job] = await take(store, limit=1)
        (small_disk / "jobs.db.ballast").unlink()
        # Another program uses all space that becomes free.
        for size in (MEGABYTE, 10_000, 1):
            fill(small_disk / f"more-{size}")
            with pytest.raises(StoreFullError):
                while True:
                    await store.append(job.id, job.run, [bytes(size)])
        assert await take(store, limit=2) == []
        with pytest.raises(StoreFullError):
            await store.settle(job.id, Event.COMPLETE, now=T0, run=job.run)
        assert await store.find(job.id) == job
        other.unlink()
        await ended(store, job, Event.COMPLETE, run=job.run)
        assert ids(await take(store, limit=999)) == submitted[1:]
        assert (await store.counts(HERE)).in_queue == 0


async def test_small_writes_succeed_in_a_full_file(tmp_path: Path) -> None:
    """Runs without a separate disk: SQLite limits the size of the file."""
    with opened(tmp_path / "jobs.db", SystemDisk()) as (db, file, _):
        db.execute("CREATE TABLE pieces (piece BLOB)")
        [[pages]] = db.execute("PRAGMA page_count").fetchall()
        db.execute(f"PRAGMA max_page_count = {pages + 20}").fetchall()
        space = DiskSpace(tmp_path / "ballast", SystemDisk())
        watch = FileWatch()
        watch.begin(file)
        writer = Writer(db, space, watch, ThreadRunner)
        writer.start()

        async def write(size: int) -> int:
            return await writer.do(
                lambda db: db.execute("INSERT INTO pieces VALUES (?)", (bytes(size),)).rowcount,
                no_op,
                no_op,
                size,
            )

        undone: list[int] = []
        results = await asyncio.gather(
            write(10),
            write(MEGABYTE),
            write(20),
            write(MEGABYTE),
            write(30),
            return_exceptions=True,
        )
        with pytest.raises(StoreFullError):
            await writer.do(
                lambda db: db.execute("INSERT INTO pieces VALUES (?)", (bytes(MEGABYTE),)),
                no_op,
                lambda: undone.append(1),
                MEGABYTE,
            )
        assert undone == [1]
        page_limit = db.execute("PRAGMA max_page_count = 100000").fetchall()
        assert page_limit == [(100_000,)]
        assert await write(MEGABYTE) == 1
        await writer.close()
    assert [isinstance(result, StoreFullError) for result in results] == [
        False,
        True,
        False,
        True,
        False,
    ]
    with closing(sqlite3.connect(tmp_path / "jobs.db")) as db:
        sizes = [size for (size,) in db.execute("SELECT length(piece) FROM pieces")]
    assert sizes == [10, 20, 30, MEGABYTE]


async def test_a_small_disk_has_a_small_reserve(tmp_path: Path) -> None:
    store = sqlite_store(tmp_path / "jobs.db")
    async with store.open():
        await store.submit(submission("a"), T0)
        disk = os.statvfs(tmp_path)
        size = (tmp_path / "jobs.db.ballast").stat().st_size
        assert 0 < size <= min(32 * 1024 * 1024, disk.f_blocks * disk.f_frsize // 40)
