"""The database file belongs to one proxy, and a store whose file is gone acknowledges nothing."""

import asyncio
import os
import shutil
import sqlite3
import sys
from asyncio.subprocess import PIPE
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, closing
from pathlib import Path

import pytest
from harness.data.jobs import ALICE, HERE, submission
from harness.data.store_steps import RUN, T0, ids, purge, settle, sqlite_store, take

from proxy.jobs.lifecycle import Event
from proxy.jobs.model import JobId
from proxy.store.errors import StoreGoneError, StoreUnavailableError
from proxy.store.sqlite.store import SqliteStore

ROOT = Path(__file__).parents[2]
OPEN_AND_WAIT = """
import asyncio, sys
from pathlib import Path
from harness.data.store_steps import sqlite_store

async def main():
    async with sqlite_store(Path(sys.argv[1])).open():
        print("open", flush=True)
        await asyncio.Event().wait()

asyncio.run(main())
"""


READ_AND_COPY = """
import sqlite3, sys
db = sqlite3.connect(sys.argv[1])
print(db.execute("SELECT id FROM jobs").fetchall())
db.execute("VACUUM INTO 'copy.db'")
db.backup(sqlite3.connect("backup.db"))
"""


@asynccontextmanager
async def opened_elsewhere(path: Path) -> AsyncIterator[int]:
    """Open the store in another process; return its id."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", OPEN_AND_WAIT, str(path)),
        cwd=ROOT, stdout=PIPE, env=os.environ | {"PYTHONPATH": "tests"},
    )  # fmt: skip
    assert process.stdout is not None
    try:
        assert await process.stdout.readline() == b"open\n"
        yield process.pid
    finally:
        process.kill()
        await process.wait()


@asynccontextmanager
async def opened_by(path: Path) -> AsyncIterator[SqliteStore]:
    store = sqlite_store(path)
    async with store.open():
        yield store


async def refusal(path: Path) -> str:
    """Return the message of the failed opening."""
    with pytest.raises(StoreUnavailableError) as refused:
        async with sqlite_store(path).open():
            pass
    return str(refused.value)


# The lock


async def test_a_second_proxy_cannot_open_the_file_through_a_symbolic_link(tmp_path: Path) -> None:
    path = tmp_path / "jobs.db"
    link = tmp_path / "other" / "link.db"
    link.parent.mkdir()
    link.symlink_to(path)
    async with opened_elsewhere(path) as process:
        assert f"in use by another proxy (process {process})" in await refusal(link)
    async with opened_elsewhere(link) as process:
        assert f"in use by another proxy (process {process})" in await refusal(path)
    assert [entry.name for entry in link.parent.iterdir()] == ["link.db"]


async def test_a_second_proxy_cannot_open_the_file_through_a_hard_link(tmp_path: Path) -> None:
    path = tmp_path / "jobs.db"
    async with opened_elsewhere(path) as process:
        (tmp_path / "hard.db").hardlink_to(path)
        assert f"(process {process})" in await refusal(tmp_path / "hard.db")


async def test_a_deleted_lock_file_does_not_let_a_second_proxy_in(tmp_path: Path) -> None:
    path = tmp_path / "jobs.db"
    async with opened_elsewhere(path) as process:
        (tmp_path / "jobs.db.lock").unlink()
        assert f"in use by another proxy (process {process})" in await refusal(path)
    async with sqlite_store(path).open():
        pass


async def test_other_programs_read_and_copy_the_file_of_a_running_proxy(tmp_path: Path) -> None:
    path = tmp_path / "jobs.db"
    async with opened_by(path) as store:
        await store.submit(submission("a"), T0)
        other = await asyncio.create_subprocess_exec(
            *(sys.executable, "-c", READ_AND_COPY, "jobs.db"), cwd=tmp_path, stdout=PIPE
        )
        assert await other.communicate() == (b"[('a',)]\n", None)
        await store.submit(submission("b"), T0)
    for copy in ("copy.db", "backup.db"):
        async with opened_by(tmp_path / copy) as store:
            assert ids(await take(store)) == ["a"]


# Gone


def delete(path: Path) -> None:
    path.unlink()


def move_away(path: Path) -> None:
    path.rename(path.with_name("moved.db"))


def replace(path: Path) -> None:
    with closing(sqlite3.connect(path.with_name("other.db"))) as other:
        other.execute("CREATE TABLE theirs (a)")
    path.with_name("other.db").replace(path)


def delete_folder(path: Path) -> None:
    shutil.rmtree(path.parent)


LOSSES: list[Callable[[Path], None]] = [delete, move_away, replace, delete_folder]


@pytest.mark.parametrize("lose", LOSSES)
async def test_no_write_is_acknowledged_after_the_file_is_gone(
    tmp_path: Path, lose: Callable[[Path], None]
) -> None:
    path = tmp_path / "data" / "jobs.db"
    async with opened_by(path) as store:
        await store.submit(submission("a"), T0)
        lose(path)
        with pytest.raises(StoreGoneError, match=r"was deleted or moved|was replaced"):
            await store.submit(submission("b"), T0)
        assert store.gone
        await check_every_call_fails(store)


async def check_every_call_fails(store: SqliteStore) -> None:
    job = JobId("a")
    calls: list[Awaitable[object]] = [
        store.running(),
        store.submit(submission("c"), T0),
        store.get(HERE, ALICE, job),
        store.find(job),
        store.recent(HERE, ALICE, before=None, limit=9),
        settle(store, job, Event.CANCEL),
        purge(store),
        store.due(T0, 9),
        store.forget(T0, 9),
        store.limit_life(job, T0),
        store.deliveries(T0, 9),
        store.append(job, RUN, [b"1"]),
        store.read(job, 0, 9),
        store.look(HERE, ALICE, job, 0, limit=9, max_bytes=9),
        store.result(HERE, ALICE, job, max_bytes=9),
        store.consume(job, 1, 1),
        store.adopt(job, 1, RUN, T0),
        store.counts(HERE),
    ]
    results = await asyncio.gather(*calls, return_exceptions=True)
    assert {type(result) for result in results} == {StoreGoneError}
    assert await take(store) == []


@pytest.mark.parametrize("lose", LOSSES)
async def test_a_lost_file_is_noticed_without_a_write(
    tmp_path: Path, lose: Callable[[Path], None]
) -> None:
    path = tmp_path / "data" / "jobs.db"
    async with opened_by(path) as store:
        lose(path)
        async with asyncio.timeout(5):
            reason = await store.until_gone()
    assert str(path) in reason
    assert reason == store.gone


async def test_closing_a_store_leaves_the_file_that_has_replaced_its_own(tmp_path: Path) -> None:
    path = tmp_path / "jobs.db"
    async with opened_by(path) as store:
        await store.submit(submission("a"), T0)
        delete(path)
        (tmp_path / "jobs.db-wal").unlink()
        (tmp_path / "jobs.db-shm").unlink()
        (tmp_path / "jobs.db.lock").unlink()
        async with opened_by(path) as other:
            await other.submit(submission("b"), T0)
            with pytest.raises(StoreGoneError):
                await store.submit(submission("c"), T0)
            await other.submit(submission("d"), T0)
    async with opened_by(path) as other:
        assert ids(await take(other)) == ["b", "d"]


async def test_a_file_that_is_damaged_at_run_time_is_gone(tmp_path: Path) -> None:
    path = tmp_path / "jobs.db"
    async with opened_by(path) as store:
        for number in range(200):
            await store.submit(submission(f"{number}"), T0)
        with closing(sqlite3.connect(path)) as other:
            other.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
        size = path.stat().st_size
        with path.open("r+b") as file:
            file.seek(4096)
            file.write(b"\xff" * (size - 4096))
        with pytest.raises(StoreGoneError, match="damaged"):
            await store.running()
        assert "damaged" in await store.until_gone()
        with pytest.raises(StoreGoneError):
            await store.submit(submission("late"), T0)


# The write-ahead log


async def killed(folder: Path, jobs: int) -> Path:
    """Return the file of a proxy that was killed after it had acknowledged jobs."""
    path = folder / "killed" / "jobs.db"
    path.parent.mkdir()
    async with opened_by(folder / "jobs.db") as store:
        for number in range(jobs):
            await store.submit(submission(f"{number}"), T0)
        for name in ("jobs.db", "jobs.db-wal"):
            shutil.copy(folder / name, path.parent / name)
    return path


def log_of(path: Path) -> Path:
    return path.with_name("jobs.db-wal")


async def test_a_damaged_log_is_rejected_and_unchanged(tmp_path: Path) -> None:
    path = await killed(tmp_path, 30)
    log = log_of(path)
    data = bytearray(log.read_bytes())
    data[len(data) // 2] ^= 1
    log.write_bytes(data)
    message = await refusal(path)
    assert message.startswith(f"{path} is damaged (frame ")
    assert "docs/durability.md" in message
    assert log.read_bytes() == data
    # The choice of docs/durability.md to go on with the jobs before the damage.
    with closing(sqlite3.connect(path)) as db:
        db.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
    async with opened_by(path) as store:
        assert 0 < len(await take(store, limit=99)) < 30


async def test_a_log_that_a_power_loss_has_cut_is_accepted(tmp_path: Path) -> None:
    path = await killed(tmp_path, 30)
    log = log_of(path)
    log.write_bytes(log.read_bytes()[:-1000])
    async with opened_by(path) as store:
        assert len(await take(store, limit=99)) == 29


@pytest.mark.parametrize("spoil", [delete, lambda path: path.write_bytes(b"")])
async def test_a_log_without_its_file_is_rejected_and_unchanged(
    tmp_path: Path, spoil: Callable[[Path], object]
) -> None:
    path = await killed(tmp_path, 30)
    data = log_of(path).read_bytes()
    spoil(path)
    message = await refusal(path)
    assert "is damaged (it is empty, but not its write-ahead log)" in message
    assert log_of(path).read_bytes() == data
    assert message == await refusal(path)
