"""A process that works on a SQLite store as hard as it can, and says what was acknowledged: made to be killed.

`python -m harness.load.store_storm FILE NAME`: prints a line for every answer of the store, after it has come.
What an earlier process left running is released first.
"""

import asyncio
import os
import random
import sys
from pathlib import Path

from harness.data.jobs import HERE, submission
from harness.data.store_steps import sqlite_store
from proxy.jobs.lifecycle import Event
from proxy.jobs.model import Job, JobId, Millis, WorkerId
from proxy.store.sqlite.store import SqliteStore

CLIENTS, WORKERS = 8, 4
NOW = Millis(1_000_000)
FOREVER = Millis(10**12)


def say(*words: object) -> None:
    """One line, in one write: a kill leaves it whole or out."""
    os.write(1, " ".join(map(str, words)).encode() + b"\n")


async def submit(store: SqliteStore, name: str, chance: random.Random) -> None:
    """Submit jobs, and cancel some of them."""
    number = 0
    while True:
        number += 1
        job_id = JobId(f"{name}-{number}")
        wanted = submission(job_id, durable=True, retention=FOREVER, execution_timeout=FOREVER)
        await store.submit(wanted, NOW)
        say("submitted", job_id)
        if chance.random() < 0.2 and await store.settle(job_id, Event.CANCEL, now=NOW) is not None:
            say("cancelled", job_id)


async def work(store: SqliteStore, name: str, chance: random.Random) -> None:
    """Take jobs, write their output, end them."""
    while True:
        jobs = await store.take(HERE, WorkerId(name), limit=3, light_limit=0, now=NOW)
        for job in jobs:
            say("taken", job.id, job.attempt)
            await run(store, job, chance)
        if not jobs:
            await asyncio.sleep(0)


async def run(store: SqliteStore, job: Job, chance: random.Random) -> None:
    """One run: some are handed back, some fail, most complete."""
    for _ in range(2):
        cursor = await store.append(job.id, job.attempt, [f"{job.id} {job.attempt}".encode()])
        if cursor is not None:
            say("appended", job.id, job.attempt, cursor)
    event = chance.choice([Event.RELEASE, Event.FAIL, Event.COMPLETE, Event.COMPLETE])
    output = f"{job.id} {job.attempt}".encode() if event is Event.COMPLETE else None
    if await store.settle(job.id, event, now=NOW, attempt=job.attempt, output=output) is not None:
        say(event, job.id, job.attempt)
    if event is Event.FAIL and await store.settle(job.id, Event.RETRY, now=NOW) is not None:
        say("retried", job.id)


async def storm(path: Path, name: str) -> None:
    """Everything at once, for ever."""
    store = sqlite_store(path)
    async with store.open():
        for job in await store.running():
            await store.settle(job.id, Event.RELEASE, now=NOW, attempt=job.attempt)
        say("open")
        async with asyncio.TaskGroup() as group:
            for number in range(CLIENTS):
                group.create_task(
                    submit(store, f"{name}-{number}", random.Random(f"{name} {number}"))
                )
            for number in range(WORKERS):
                group.create_task(work(store, f"w-{number}", random.Random(f"{name} w {number}")))


if __name__ == "__main__":
    asyncio.run(storm(Path(sys.argv[1]), sys.argv[2]))
