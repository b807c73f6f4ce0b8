"""The contract of `JobStore`: submissions that are repeated under a key."""

import asyncio
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest
from harness.data.jobs import ALICE, HERE, submission
from harness.data.store_steps import MINUTE, T0, Submit, ended, ids, sqlite_store, take

from proxy.jobs.lifecycle import Event
from proxy.jobs.model import EndpointId, Input, JobId, Millis, Owner, SubmissionKey
from proxy.store.base import JobStore
from proxy.store.errors import OtherSubmissionError
from proxy.store.sqlite.database import MIGRATIONS

KEY = SubmissionKey("run first", b"\x00digest")
OTHER_BODY = KEY._replace(digest=b"another")


async def test_a_job_with_the_same_key_is_returned(store: JobStore, submit: Submit) -> None:
    [first] = await submit("a", key=KEY)
    assert first.submission.key == KEY
    assert await submit("b", key=KEY) == [first.outline()]
    both = await asyncio.gather(*(submit(name, key=KEY) for name in "cd"))
    assert both == [[first.outline()]] * 2
    assert ids(await take(store)) == ["a"]
    # The number of queued jobs includes no repetition.
    assert store.queued(HERE, light=False) == 0
    assert await store.find(JobId("b")) is None


async def test_another_digest_is_rejected(store: JobStore, submit: Submit) -> None:
    await submit("a", key=KEY)
    with pytest.raises(OtherSubmissionError):
        await submit("b", key=OTHER_BODY)
    assert ids(await store.recent(HERE, ALICE, before=None, limit=10)) == ["a"]
    # The rejected call has had no effect on later ones.
    assert ids(await submit("c")) == ["c"]


async def test_a_key_belongs_to_an_owner_and_an_endpoint(store: JobStore, submit: Submit) -> None:
    await submit("a", key=KEY)
    assert ids(await submit("b", key=OTHER_BODY, owner=Owner("bob"))) == ["b"]
    assert ids(await submit("c", key=OTHER_BODY, endpoint=EndpointId("other"))) == ["c"]
    assert ids(await submit("d", key=OTHER_BODY._replace(name="runsync first"))) == ["d"]


async def test_a_key_exists_as_long_as_its_job(store: JobStore, submit: Submit) -> None:
    await submit("a", key=KEY, work=Input(b"1"), retention=Millis(MINUTE))
    [taken] = await take(store)
    after = await ended(store, taken, Event.COMPLETE, now=T0, output=b"1")
    assert after.submission.key == KEY
    assert await submit("b", key=KEY) == [after.outline()]
    assert await store.forget(Millis(T0 + MINUTE - 1), 10) == 0
    assert ids(await submit("c", key=KEY)) == ["a"]
    assert await store.forget(Millis(T0 + MINUTE), 10) == 1
    assert ids(await submit("d", key=OTHER_BODY)) == ["d"]


async def test_a_retried_job_keeps_its_key(store: JobStore, submit: Submit) -> None:
    await submit("a", key=KEY)
    [taken] = await take(store)
    await ended(store, taken, Event.FAIL)
    await ended(store, taken, Event.RETRY)
    [again] = await submit("b", key=KEY)
    assert (again.id, again.retry_count) == ("a", 1)


async def test_a_key_survives_a_restart(tmp_path: Path) -> None:
    path = tmp_path / "jobs.db"
    async with sqlite_store(path).open():
        pass
    for name in "ab":
        store = sqlite_store(path)
        async with store.open():
            job = await store.submit(submission(name, key=KEY), T0)
            assert (job.id, job.submission.key) == ("a", KEY)


async def test_a_file_without_keys_gets_them(tmp_path: Path) -> None:
    """A file of the version before keys were added."""
    path = tmp_path / "jobs.db"
    version = next(number for number, sql in enumerate(MIGRATIONS) if "key_name" in sql)
    async with sqlite_store(path).open():
        pass
    with closing(sqlite3.connect(path)) as db:
        db.executescript(
            "DROP TABLE clean_close; DROP INDEX jobs_by_key; ALTER TABLE jobs DROP COLUMN key_name;"
            f"ALTER TABLE jobs DROP COLUMN key_digest; PRAGMA user_version = {version}"
        )
    store = sqlite_store(path)
    async with store.open():
        assert (await store.submit(submission("a", key=KEY), T0)).submission.key == KEY
