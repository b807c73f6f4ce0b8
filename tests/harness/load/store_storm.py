"""A writer that loads a SQLite store and prints what was acknowledged; tests kill it.

`python -m harness.load.store_storm FILE NAME` prints a line for every response of the store, after
it was received. Jobs that an earlier process left running are released first.
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
    """Print one line in a single write, so that a kill leaves it either complete or absent."""
    os.write(1, " ".join(map(str, words)).encode() + b"\n")


async def submit(store: SqliteStore, name: str, chance: random.Random) -> None:
    number = 0
    while True:
        number += 1
        job_id = JobId(f"{name}-{number}")
        wanted = submission(job_id, retention=FOREVER, execution_timeout=FOREVER)
        await store.submit(wanted, NOW)
        say("submitted", job_id)
        if chance.random() < 0.2 and await store.settle(job_id, Event.CANCEL, now=NOW) is not None:
            say("cancelled", job_id)


async def work(store: SqliteStore, name: str, chance: random.Random) -> None:
    """Take jobs, write their output and end them."""
    while True:
        jobs = await store.take(
            HERE, WorkerId(name), limit=3, light_limit=0, now=NOW, run=chance.getrandbits(63)
        )
        for job in jobs:
            say("taken", job.id, job.attempt)
            await run(store, job, chance)
        if not jobs:
            await asyncio.sleep(0)


async def run(store: SqliteStore, job: Job, chance: random.Random) -> None:
    """Run a job: some are handed back, some fail, most complete."""
    for _ in range(2):
        cursor = await store.append(job.id, job.run, [f"{job.id} {job.attempt}".encode()])
        if cursor is not None:
            say("appended", job.id, job.attempt, cursor)
    event = chance.choice([Event.RELEASE, Event.FAIL, Event.COMPLETE, Event.COMPLETE])
    output = f"{job.id} {job.attempt}".encode() if event is Event.COMPLETE else None
    if await store.settle(job.id, event, now=NOW, run=job.run, output=output) is not None:
        say(event, job.id, job.attempt)
    if event is Event.FAIL and await store.settle(job.id, Event.RETRY, now=NOW) is not None:
        say("retried", job.id)


async def storm(path: Path, name: str) -> None:
    """Run all operations concurrently, until the process is killed."""
    store = sqlite_store(path)
    async with store.open():
        for job in await store.running():
            await store.settle(job.id, Event.RELEASE, now=NOW, run=job.run)
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
