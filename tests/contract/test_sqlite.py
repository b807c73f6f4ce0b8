"""Guarantees of the SQLite store beyond the contract: its file, its commits, its blocking."""

import asyncio
import sqlite3
import stat
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, closing, contextmanager
from pathlib import Path
from typing import Any

import pytest
from harness.data.jobs import ALICE, HERE, submission
from harness.data.store_steps import (
    T0,
    ended,
    found,
    ids,
    purge,
    settle,
    sqlite_store,
    take,
)

from proxy.jobs.lifecycle import Event, Status
from proxy.jobs.model import Input, InteractiveJob, Job, JobId, Millis
from proxy.store.errors import StoreUnavailableError
from proxy.store.sqlite.database import MIGRATIONS
from proxy.store.sqlite.rows import Row
from proxy.store.sqlite.store import SqliteStore
from proxy.store.sqlite.writes import FORGET_MAX_BYTES, TAKE_MAX_BODY_BYTES


@asynccontextmanager
async def opened(path: Path) -> AsyncIterator[SqliteStore]:
    store = sqlite_store(path)
    async with store.open():
        yield store


async def submit(store: SqliteStore, *job_ids: str, **changed: Any) -> list[Job]:
    return [await store.submit(submission(job_id, **changed), T0) for job_id in job_ids]


@contextmanager
def write_lock(path: Path) -> Iterator[None]:
    """Hold the write lock of the file as another program, such as a backup, may do."""
    with closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        yield
        other.execute("ROLLBACK")


# File


async def test_the_file_is_private_and_its_folder_too(tmp_path: Path) -> None:
    path = tmp_path / "new" / "jobs.db"
    async with opened(path) as store:
        await submit(store, "a")
        modes = {file.name: stat.S_IMODE(file.stat().st_mode) for file in path.parent.iterdir()}
    assert set(modes.values()) == {0o600}
    assert {"jobs.db", "jobs.db-wal", "jobs.db.lock", "jobs.db.ballast"} <= set(modes)
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700


async def test_a_closed_store_is_one_file(tmp_path: Path) -> None:
    path = tmp_path / "jobs.db"
    async with opened(path) as store:
        await submit(store, "a")
    assert not (tmp_path / "jobs.db-wal").exists()
    copy = tmp_path / "elsewhere" / "jobs.db"
    copy.parent.mkdir()
    copy.write_bytes(path.read_bytes())
    async with opened(copy) as store:
        assert ids(await take(store)) == ["a"]


async def test_a_running_store_can_be_copied(tmp_path: Path) -> None:
    """The command is the one in docs/durability.md."""
    path = tmp_path / "jobs.db"
    copy = tmp_path / "copy.db"
    async with opened(path) as store:
        await submit(store, "a", "b")
        await take(store, limit=1)
        with closing(sqlite3.connect(path)) as other:
            other.execute("VACUUM INTO ?", (str(copy),))
        await submit(store, "c")
    async with opened(copy) as store:
        assert ids(await store.running()) == ["a"]
        assert ids(await take(store)) == ["b"]


async def test_pending_writes_are_committed_at_the_close(tmp_path: Path) -> None:
    async with opened(tmp_path / "jobs.db") as store:
        submitting = asyncio.create_task(submit(store, "a"))
        await asyncio.sleep(0)
    assert ids(await submitting) == ["a"]
    async with opened(tmp_path / "jobs.db") as store:
        assert ids(await take(store)) == ["a"]


async def test_rows_have_the_columns_of_the_table(tmp_path: Path) -> None:
    async with opened(tmp_path / "jobs.db"):
        with closing(sqlite3.connect(tmp_path / "jobs.db")) as db:
            columns = [name for _, name, *_ in db.execute("PRAGMA table_info(jobs)")]
    assert columns == list(Row._fields)


async def test_forgotten_jobs_leave_no_rows(tmp_path: Path) -> None:
    path = tmp_path / "jobs.db"
    async with opened(path) as store:
        await submit(store, "a", "b")
        for job in await take(store):
            await store.append(job.id, job.run, [b"1"])
            await ended(store, job, Event.FAIL, output=b"2")
        assert await store.forget(Millis(T0 * 1_000), 9) == 2
        with closing(sqlite3.connect(path)) as db:
            for table in ("jobs", "works", "results", "outputs"):
                count = f"SELECT count(*) FROM {table}"  # noqa: S608 - constants
                assert db.execute(count).fetchall() == [(0,)]


async def test_free_pages_are_given_back_to_the_disk(tmp_path: Path) -> None:
    path = tmp_path / "jobs.db"
    async with opened(path) as store:
        for number in range(40):
            await submit(store, f"{number}", work=Input(bytes(1_000_000)), retention=Millis(0))
        await purge(store)
        for _ in range(5):
            await store.forget(T0, 1_000)
    assert path.stat().st_size < 20_000_000


# Opening


async def refusal(path: Path) -> str:
    """Return the message of the failed opening."""
    with pytest.raises(StoreUnavailableError) as refused:
        async with opened(path):
            pass
    message = str(refused.value)
    assert message.startswith((f"{path} ", f"cannot open {path}: "))
    assert "\n" not in message
    return message


async def test_a_second_process_is_rejected(tmp_path: Path) -> None:
    path = tmp_path / "jobs.db"
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "harness.load.store_storm", str(path), "a"),
        cwd=Path(__file__).parents[2], env={"PYTHONPATH": "tests"}, stdout=subprocess.PIPE,
    )  # fmt: skip
    assert process.stdout is not None
    try:
        await process.stdout.readline()
        assert f"in use by another proxy (process {process.pid})" in await refusal(path)
    finally:
        process.kill()
        await process.wait()
    async with opened(path):
        pass


async def test_the_lock_is_free_after_the_close(tmp_path: Path) -> None:
    async with opened(tmp_path / "jobs.db"):
        await refusal(tmp_path / "jobs.db")
    async with opened(tmp_path / "jobs.db"):
        pass


async def some_jobs(path: Path) -> None:
    async with opened(path) as store:
        await asyncio.gather(*(submit(store, f"{number}") for number in range(500)))


def forget_close(path: Path) -> None:
    """Make a closed file look like that of a process that was killed."""
    with closing(sqlite3.connect(path, isolation_level=None)) as db:
        assert db.execute("DELETE FROM clean_close").rowcount == 1


@pytest.mark.parametrize("first", [0, 4096, 4096 * 2, 4096 * 9])
async def test_a_damaged_file_is_rejected(tmp_path: Path, first: int) -> None:
    path = tmp_path / "jobs.db"
    await some_jobs(path)
    forget_close(path)
    data = bytearray(path.read_bytes())
    data[first : first + 100] = b"\xff" * 100
    path.write_bytes(data)
    message = await refusal(path)
    assert "damaged" in message
    assert "docs/durability.md" in message
    assert path.read_bytes() == data


async def test_a_truncated_file_is_rejected(tmp_path: Path) -> None:
    path = tmp_path / "jobs.db"
    await some_jobs(path)
    forget_close(path)
    path.write_bytes(path.read_bytes()[: 4096 * 10])
    assert "damaged" in await refusal(path)


async def test_a_file_of_a_newer_version_is_rejected(tmp_path: Path) -> None:
    path = tmp_path / "jobs.db"
    await some_jobs(path)
    with closing(sqlite3.connect(path)) as db:
        db.execute(f"PRAGMA user_version = {len(MIGRATIONS) + 1}")
    assert "newer" in await refusal(path)


async def test_a_file_of_another_program_is_rejected(tmp_path: Path) -> None:
    path = tmp_path / "theirs.db"
    with closing(sqlite3.connect(path)) as db:
        db.execute("CREATE TABLE theirs (a)")
    before = path.read_bytes()
    assert "another program" in await refusal(path)
    assert path.read_bytes() == before


async def test_a_folder_is_rejected(tmp_path: Path) -> None:
    path = tmp_path / "jobs.db"
    path.mkdir()
    assert "Is a directory" in await refusal(path)


# Commits


async def test_concurrent_writes_share_commits(tmp_path: Path) -> None:
    async with opened(tmp_path / "jobs.db") as store:
        before = store.commits
        await asyncio.gather(*(submit(store, f"{number}") for number in range(100)))
        assert store.commits - before < 10
        jobs = await take(store, limit=100)
        before = store.commits
        await asyncio.gather(*(ended(store, job, Event.COMPLETE) for job in jobs))
        assert store.commits - before < 10


async def test_a_failing_write_does_not_affect_others(tmp_path: Path) -> None:
    path = tmp_path / "jobs.db"
    async with opened(path) as store:
        too_late = store.submit(submission("bad", expires_at=Millis(2**70)), T0)
        # Fails in the second table that a submit writes.
        no_bytes = store.submit(submission("worse", s3_config="text"), T0)
        results = await asyncio.gather(
            submit(store, "a"), too_late, no_bytes, submit(store, "b"), return_exceptions=True
        )
        assert [type(result) for result in results] == [
            list,
            OverflowError,
            sqlite3.IntegrityError,
            list,
        ]
        assert [await store.find(JobId(name)) for name in ("bad", "worse")] == [None, None]
        assert (await store.counts(HERE)).in_queue == 2
        assert ids(await take(store)) == ["a", "b"]
    async with opened(path) as store:
        assert {job.id for job in await store.running()} == {"a", "b"}


async def test_a_call_that_is_cancelled_during_its_write_takes_effect(tmp_path: Path) -> None:
    path = tmp_path / "jobs.db"
    async with opened(path) as store:
        await submit(store, "a", "b", "c")
        with write_lock(path):
            leaving = [
                asyncio.create_task(submit(store, "d")),
                asyncio.create_task(take(store, limit=1)),
                asyncio.create_task(settle(store, "b", Event.CANCEL)),
            ]
            await asyncio.sleep(0)
            for task in leaving:
                task.cancel()
            await asyncio.gather(*leaving, return_exceptions=True)
        # "b" was in the same round as "c".
        assert ids([*await take(store), *await take(store)]) == ["c", "d"]
        assert (await found(store, "a")).status is Status.IN_PROGRESS
        assert (await found(store, "b")).status is Status.CANCELLED
        counts = await store.counts(HERE)
        assert (counts.in_queue, counts.in_progress, counts.cancelled) == (0, 3, 1)


async def test_a_cancelled_purge_leaves_the_other_jobs_queued(tmp_path: Path) -> None:
    path = tmp_path / "jobs.db"
    async with opened(path) as store:
        await asyncio.gather(*(submit(store, f"{number}") for number in range(450)))
        with write_lock(path):
            purging = asyncio.create_task(purge(store))
            await asyncio.sleep(0)
            purging.cancel()
            await asyncio.gather(purging, return_exceptions=True)
        rest = await take(store, limit=999)
        counts = await store.counts(HERE)
        assert (counts.cancelled, counts.in_progress) == (450 - len(rest), len(rest))
        assert 0 < len(rest) < 450


@pytest.mark.torture
async def test_jobs_stay_queued_while_the_file_is_locked(tmp_path: Path) -> None:
    path = tmp_path / "jobs.db"
    async with opened(path) as store:
        await submit(store, "a", "b")
        # The lock lasts longer than the busy timeout of the writer.
        with write_lock(path):
            assert await take(store, limit=2) == []
            assert store.queued(HERE, light=False) == 2
        assert ids(await take(store)) == ["a", "b"]


# The index in memory


async def test_the_queues_are_counted_again_after_an_opening(tmp_path: Path) -> None:
    path = tmp_path / "jobs.db"
    async with opened(path) as store:
        jobs = await submit(store, "a", "b", "c", "d")
        await submit(store, "low", low_priority=True)
        await submit(store, "x", light=True)
        bound = (await submit(store, "e"))[0].sequence
        await take(store, limit=2, light_limit=0)
        await settle(store, "b", Event.RELEASE)
        await settle(store, "c", Event.CANCEL)
    async with opened(path) as store:
        assert store.queued(HERE, light=False) == 4
        assert store.queued(HERE, light=True) == 1
        assert store.queued(HERE, light=False, before=bound) == 2
        assert store.queued(HERE, light=True, before=bound) == 1
        assert store.queued(HERE, light=False, before=jobs[1].sequence) == 0
        assert [store.ahead(await found(store, name)) for name in ("b", "e", "low")] == [0, 2, 3]


async def test_sequences_continue_after_an_opening(tmp_path: Path) -> None:
    path = tmp_path / "jobs.db"
    async with opened(path) as store:
        [a, b] = await submit(store, "a", "b")
        await take(store)
        await ended(store, a, Event.FAIL)
        retried = await ended(store, a, Event.RETRY)
    async with opened(path) as store:
        foreign = InteractiveJob(submission("foreign"), store.next_sequence(), T0)
        [c] = await submit(store, "c")
        assert b.sequence < retried.sequence < foreign.sequence < c.sequence
        assert [store.ahead(job) for job in (retried, foreign, c)] == [0, 1, 1]
        assert store.queued(HERE, light=False, before=foreign.sequence) == 1
        assert ids(await take(store)) == ["a", "c"]


# Memory


async def test_large_bodies_are_taken_a_few_at_a_time(tmp_path: Path) -> None:
    """A worker with many slots does not load a whole queue of large jobs into memory.

    Repeated takes hand out all of them.
    """
    body = Input(b'"%b"' % (b"x" * (TAKE_MAX_BODY_BYTES // 2)))
    async with opened(tmp_path / "jobs.db") as store:
        names = [str(number) for number in range(5)]
        for name in names:
            await submit(store, name, work=body)
        takes = [ids(await take(store, limit=9)) for _ in range(4)]
        assert takes == [["0", "1"], ["2", "3"], ["4"], []]
        assert (await store.counts(HERE)).in_progress == len(names)


async def test_large_results_are_forgotten_a_few_at_a_time(tmp_path: Path) -> None:
    """One write deletes about `FORGET_MAX_BYTES`, so that other writes do not wait long."""
    async with opened(tmp_path / "jobs.db") as store:
        names = [str(number) for number in range(6)]
        await submit(store, *names, retention=Millis(0))
        await take(store)
        for name in names:
            await settle(store, name, Event.COMPLETE, output=bytes(FORGET_MAX_BYTES * 2 // 3))
        before = store.commits
        assert await store.forget(Millis(T0 + 60_000), 100) == 6
        assert store.commits - before >= 3
        assert not await store.recent(HERE, ALICE, before=None, limit=9)
