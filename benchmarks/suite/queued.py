"""A store with many queued jobs, as a data directory to start the proxy with."""

import asyncio
import time
from pathlib import Path

from proxy.jobs.model import EndpointId, Input, JobId, Millis, Owner, Submission
from proxy.store.sqlite.store import SqliteStore
from proxy.system import SystemDisk, ThreadRunner

JOBS = 1_000_000
# Submits that share one commit.
BATCH_JOBS = 2_000
BODY = b'{"prompt":"' + b"x" * 980 + b'"}'
DAY_MS = 86_400_000


def fill(data: Path, jobs: int = JOBS) -> None:
    """Write jobs of the owner `bench` with bodies of 1 KB into the store of an empty directory."""
    asyncio.run(_fill(data / "jobs.db", jobs))


async def _fill(path: Path, jobs: int) -> None:
    now = Millis(int(time.time() * 1000))
    store = SqliteStore(path, SystemDisk(), ThreadRunner)
    async with store.open():
        for first in range(0, jobs, BATCH_JOBS):
            numbers = range(first, min(first + BATCH_JOBS, jobs))
            submits = (store.submit(_submission(number, now), now) for number in numbers)
            await asyncio.gather(*submits)


def _submission(number: int, now: Millis) -> Submission:
    return Submission(
        id=JobId(f"{number:0>36}-u1"),
        endpoint=EndpointId("default"),
        owner=Owner("bench"),
        work=Input(BODY),
        light=False,
        low_priority=False,
        queued_until=None,
        expires_at=Millis(now + DAY_MS),
        execution_timeout=Millis(600_000),
        retention=Millis(1_800_000),
    )
