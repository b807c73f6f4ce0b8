"""The table of receivers agrees with the jobs, and makes the queries for deliveries cheap."""

import random
import sqlite3
from contextlib import closing
from pathlib import Path

from harness.data.jobs import submission
from harness.data.store_steps import T0, settle, sqlite_store, take

from proxy.jobs.lifecycle import Event
from proxy.jobs.model import Millis
from proxy.store.sqlite.database import APPLICATION_ID, MIGRATIONS
from proxy.store.sqlite.due_deliveries import (
    DUE_JOBS,
    DUE_RECEIVERS,
    NEXT_OWNER,
    RECEIVERS_MIGRATION,
)

LATE = Millis(T0 + 10**9)
RECEIVERS = """
SELECT owner, receiver, min(deliver_at) FROM jobs WHERE deliver_at IS NOT NULL
GROUP BY owner, receiver ORDER BY owner, receiver"""

OLD_ROW = """
INSERT INTO jobs (id, endpoint, owner, light, low_priority, execution_timeout, retention, sequence,
                  status, attempt, failures, retries, drained, tries, last_event,
                  number, webhook, created_at, finished_at, deliver_at)
VALUES (?, 'default', 'alice', 0, 0, 1, 60000, 1, 'CANCELLED', 0, 0, 0, 0, 0, 'cancel',
        ?, ?, ?, ?, ?)"""


async def test_the_receivers_are_those_of_the_pending_deliveries(tmp_path: Path) -> None:
    chance = random.Random(1)
    path = tmp_path / "jobs.db"
    store = sqlite_store(path)
    async with store.open():
        with closing(sqlite3.connect(path)) as db:
            for number in range(120):
                hook = f"https://host-{number % 3}.example:{8000 + number % 2}/secret"
                await store.submit(submission(f"{number}", webhook=hook), T0)
                if number % 2:
                    await take(store)
                await settle(store, f"{number}", Event.FAIL if number % 2 else Event.CANCEL)
                for delivery in chance.sample(await store.deliveries(LATE, 9), 1):
                    moment = chance.choice([None, None, Millis(T0 + chance.randrange(9))])
                    await store.tried(delivery, moment)
                await settle(store, f"{chance.randrange(number + 1)}", Event.RETRY)
                if number == 60:
                    await store.hasten(Millis(T0 + 3), T0)
                found = db.execute("SELECT * FROM receivers ORDER BY 1, 2").fetchall()
                assert found == db.execute(RECEIVERS).fetchall()
            assert {"https://host-0.example:8000", "https://host-2.example:8001"} < {
                address for _, address, _ in found
            }


async def test_the_queries_for_deliveries_use_indexes(tmp_path: Path) -> None:
    async with sqlite_store(tmp_path / "jobs.db").open():
        with closing(sqlite3.connect(tmp_path / "jobs.db")) as db:
            for sql in (NEXT_OWNER, DUE_RECEIVERS, DUE_JOBS):
                values = (None,) * sql.count("?")
                plan = [row[-1] for row in db.execute(f"EXPLAIN QUERY PLAN {sql}", values)]
                assert len(plan) == 1, f"no sorting: {plan}"
                assert plan[0].startswith("SEARCH")


async def test_rows_of_an_older_version_have_receivers(tmp_path: Path) -> None:
    """Older versions stored the address without its port or, before that, the whole URL."""
    path = tmp_path / "jobs.db"
    older = MIGRATIONS[: MIGRATIONS.index(RECEIVERS_MIGRATION)]
    with closing(sqlite3.connect(path)) as db:
        db.executescript(";".join(older))
        db.execute(f"PRAGMA application_id = {APPLICATION_ID}")
        db.execute(f"PRAGMA user_version = {len(older)}")
        for number, (webhook, deliver_at) in enumerate(
            (
                ("https://sealed.example c2VjcmV0", T0 + 2),
                ("https://User@Open.example:8443/secret?secret", T0 + 1),
                ("https://done.example c2VjcmV0", None),
                (None, None),
            )
        ):
            db.execute(OLD_ROW, (f"{number}", number, webhook, T0, T0, deliver_at))
        db.commit()
    store = sqlite_store(path)
    async with store.open():
        found = await store.deliveries(LATE, 9)
        assert [one.job.id for one in found] == ["1", "0"]
        await store.tried(found[0], Millis(T0 + 3))
        with closing(sqlite3.connect(path)) as db:
            receivers = db.execute("SELECT * FROM receivers ORDER BY address").fetchall()
            columns = db.execute("SELECT receiver FROM jobs ORDER BY number").fetchall()
    assert receivers == [
        ("alice", "https://open.example:8443", T0 + 3),
        ("alice", "https://sealed.example", T0 + 2),
    ]
    assert [address for (address,) in columns] == [
        "https://sealed.example",
        "https://open.example:8443",
        "https://done.example",
        None,
    ]
