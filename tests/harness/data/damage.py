"""Damage of a database file."""

import asyncio
import sqlite3
from contextlib import closing
from pathlib import Path

from harness.data.jobs import submission
from harness.data.store_steps import T0, sqlite_store
from proxy.jobs.model import Input

PAGE_BYTES = 4096
# The body of a job, which is not read before a worker takes the job.
MARK = b"this is the body of a job"
BODY = Input(b'"%b"' % (MARK * 40))


async def make_file(path: Path, jobs: int = 100) -> None:
    """Write a store with queued jobs that do not expire, and close it."""
    store = sqlite_store(path)
    async with store.open():
        await asyncio.gather(
            *(store.submit(submission(f"{number}", work=BODY), T0) for number in range(jobs))
        )


def damage_bodies(path: Path) -> None:
    """Overwrite the start of a page with bodies of jobs."""
    _damage_page(path, path.read_bytes().index(MARK) // PAGE_BYTES)


def damage_jobs(path: Path) -> None:
    """Overwrite the start of the first page of the table of jobs, which every start reads."""
    with closing(sqlite3.connect(path)) as db:
        sql = "SELECT rootpage FROM sqlite_schema WHERE name = 'jobs'"
        [[page]] = db.execute(sql).fetchall()
    # The first page has the number 1.
    _damage_page(path, page - 1)


def _damage_page(path: Path, index: int) -> None:
    with path.open("r+b") as file:
        file.seek(index * PAGE_BYTES)
        file.write(b"\xff" * 100)
