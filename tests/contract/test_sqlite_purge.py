"""A purge of the SQLite store is done in bounded writes, and other writes come in between."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest_asyncio
from harness.data.jobs import ALICE, HERE, submission
from harness.data.store_steps import T0, WHY, ids, purge, sqlite_store, take

from proxy.jobs.model import Input, Owner
from proxy.store.sqlite.store import JOBS_PER_WRITE, SqliteStore
from proxy.store.sqlite.writes import PURGE_MAX_BYTES

JOBS = 5 * JOBS_PER_WRITE


@pytest_asyncio.fixture
async def store(tmp_path: Path) -> AsyncIterator[SqliteStore]:
    made = sqlite_store(tmp_path / "jobs.db")
    async with made.open():
        yield made


async def submit_many(store: SqliteStore, number: int) -> None:
    wanted = (submission(f"{one}", work=Input(b"1")) for one in range(number))
    await asyncio.gather(*(store.submit(one, T0) for one in wanted))


async def test_other_writes_come_between_the_pages(store: SqliteStore) -> None:
    await submit_many(store, JOBS)
    before = store.commits
    purging = asyncio.create_task(purge(store))
    # Until the first page is queued.
    await asyncio.sleep(0)
    await store.submit(submission("other", owner=Owner("bob")), T0)
    assert not purging.done()
    assert (await store.counts(HERE)).in_queue > JOBS // 2
    assert len(await purging) == JOBS
    assert store.commits - before >= JOBS // JOBS_PER_WRITE
    assert ids(await take(store)) == ["other"]


async def test_jobs_stay_available_between_the_pages(store: SqliteStore) -> None:
    await submit_many(store, JOBS)
    purging = asyncio.create_task(purge(store))
    await asyncio.sleep(0)
    taken = await take(store, limit=JOBS_PER_WRITE)
    assert len(taken) == JOBS_PER_WRITE
    purged = await purging
    assert len(purged) == JOBS - JOBS_PER_WRITE
    assert not {*ids(taken)} & {*ids(purged)}
    counts = await store.counts(HERE)
    assert (counts.in_queue, counts.in_progress) == (0, len(taken))
    assert counts.cancelled == len(purged)


async def test_a_page_ends_after_many_bytes(store: SqliteStore) -> None:
    body = Input(bytes(PURGE_MAX_BYTES * 2 // 3))
    for number in range(5):
        await store.submit(submission(f"{number}", work=body), T0)
    before = store.next_sequence()
    first = await store.purge(HERE, ALICE, T0, WHY, before=before, limit=9)
    assert ids(first) == ["0", "1"]
    assert ids(await take(store, limit=1)) == ["2"]
    rest = await store.purge(HERE, ALICE, T0, WHY, before=before, limit=9)
    assert ids(rest) == ["3", "4"]
    assert (await store.counts(HERE)).in_queue == 0
