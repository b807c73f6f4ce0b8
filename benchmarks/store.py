"""Throughput and latency of the queues: durable jobs in SQLite, compared with SQLite alone on the
same disk, and interactive jobs in memory.

    .venv/bin/python benchmarks/store.py [--folder FOLDER]

FOLDER selects the disk to measure.
"""

import argparse
import asyncio
import gc
import platform
import sqlite3
import statistics
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from contextlib import closing
from pathlib import Path
from secrets import token_bytes

import uvloop
from msgspec.structs import replace

from proxy.jobs.lifecycle import Event
from proxy.jobs.model import (
    EndpointId,
    Ids,
    Input,
    Job,
    JobId,
    Millis,
    Owner,
    Request,
    Submission,
    WorkerId,
)
from proxy.jobs.policy import CANCELLED, Ending, RunEnd
from proxy.service.durable import BATCH_JOBS
from proxy.service.endpoints import Endpoint
from proxy.service.events import JobEvents, LocalSignal
from proxy.service.fleet import Fleet
from proxy.service.interactive import InteractiveJobs
from proxy.serving import THREAD_SWITCH_SECONDS
from proxy.store.memory import MemoryStore
from proxy.store.sqlite.store import SqliteStore
from proxy.system import SystemClock, SystemDisk, ThreadRunner

HERE = EndpointId("default")
WORKER = WorkerId("w-1")
NOW = Millis(1_000_000)
# The fencing token of all runs: none of them is repeated.
RUN = 1
BODY = bytes(1_000)
QUEUED_JOBS = 100_000
INTERACTIVE_JOBS = 20_000
INTERACTIVE_JOBS_PER_ROUND = 2_000
BARE_COMMITS = 2_000
SUBMIT_PAUSE_SECONDS = 0.005

# Other work in one turn of the event loop, as of a busy relay.
LOOP_LOAD_SECONDS = 0.0002


def submission(name: str) -> Submission:
    """Return a job with a body of 1 KB, and an id as the proxy generates it."""
    return Submission(
        id=JobId(f"{name:0>36}-u1"),
        endpoint=HERE,
        owner=Owner("anonymous"),
        work=Input(BODY),
        light=False,
        low_priority=False,
        queued_until=None,
        expires_at=Millis(NOW + 86_400_000),
        execution_timeout=Millis(600_000),
        retention=Millis(1_800_000),
    )


async def timed(
    name: str, callers: int, number: int, step: Callable[[int], Awaitable[object]]
) -> None:
    """Run `step` `number` times with concurrent callers, and print throughput and latencies."""
    spans: list[float] = []
    numbers = iter(range(number))

    async def caller() -> None:
        for each in numbers:
            began = time.perf_counter()
            await step(each)
            spans.append(time.perf_counter() - began)

    began = time.perf_counter()
    await asyncio.gather(*(caller() for _ in range(callers)))
    seconds = time.perf_counter() - began
    cuts = statistics.quantiles(spans, n=100)
    print(
        f"{name:<44} {callers:>3} callers {number / seconds:>9,.0f}/s"
        f"   p50 {cuts[49] * 1e3:8.3f} ms   p99 {cuts[98] * 1e3:8.3f} ms",
        flush=True,
    )


async def durable(store: SqliteStore, title: str, number: int) -> None:
    """Measure submit, take and settle of durable jobs."""
    for callers in (1, 50):
        commits = store.commits
        name = f"{title}{callers}"

        async def submit(each: int, name: str = name) -> None:
            await store.submit(submission(f"{name}-{each}"), NOW)

        async def take_and_settle(_: int) -> None:
            [job] = await store.take(HERE, WORKER, limit=1, light_limit=0, now=NOW, run=RUN)
            await store.settle(job.id, Event.COMPLETE, now=NOW, run=job.run, output=b'"done"')

        await timed(f"{title}submit", callers, number, submit)
        print(f"{'':<44} {store.commits - commits} commits")
        await timed(f"{title}take and settle", callers, number, take_and_settle)


def interactive() -> None:
    """Measure call, take and end of interactive jobs.

    The result is the minimum CPU time of several rounds, since other processes share the machine.
    """
    fleet = Fleet(LocalSignal())
    jobs = InteractiveJobs(MemoryStore(), fleet, JobEvents(), SystemClock(), Ids(token_bytes))
    endpoint = Endpoint(HERE)
    request = Request("POST", "/v1/chat/completions", "application/json", BODY)
    owner = Owner("anonymous")
    end = RunEnd(Ending.COMPLETED)

    def one() -> None:
        mailbox = jobs.call(endpoint, owner, request, light=False, queue_timeout=None)
        jobs.take(HERE, WORKER, 1, light=False)
        mailbox.end(1, end)
        jobs.hang_up(mailbox)

    spans = []
    for _ in range(0, INTERACTIVE_JOBS, INTERACTIVE_JOBS_PER_ROUND):
        began = time.thread_time()
        for _ in range(INTERACTIVE_JOBS_PER_ROUND):
            one()
        spans.append((time.thread_time() - began) / INTERACTIVE_JOBS_PER_ROUND * 1e6)
    print(f"{'interactive call, take, end':<44} {min(spans):.2f} us of CPU time")


async def busy() -> None:
    """Keep the event loop busy with other work most of the time."""
    while True:
        until = time.perf_counter() + LOOP_LOAD_SECONDS
        while time.perf_counter() < until:
            pass
        await asyncio.sleep(LOOP_LOAD_SECONDS / 10)


def resident() -> int:
    """Return the resident memory of this process in bytes."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * 4096


def bare(path: Path) -> None:
    """Measure SQLite alone, with one row per commit."""
    spans = []
    with closing(sqlite3.connect(path, isolation_level=None)) as db:
        db.execute("PRAGMA journal_mode = WAL").fetchall()
        db.execute("PRAGMA synchronous = FULL")
        db.execute("CREATE TABLE rows (row BLOB)")
        for _ in range(BARE_COMMITS):
            began = time.perf_counter()
            db.execute("INSERT INTO rows VALUES (?)", (BODY,))
            spans.append(time.perf_counter() - began)
    cuts = statistics.quantiles(spans, n=100)
    print(
        f"{'SQLite alone, one row per commit':<44} {'':>11} {len(spans) / sum(spans):>9,.0f}/s"
        f"   p50 {cuts[49] * 1e3:8.3f} ms   p99 {cuts[98] * 1e3:8.3f} ms"
    )


def megabytes(path: Path) -> float:
    """Return the size of a file in units of 1,000,000 bytes."""
    return path.stat().st_size / 1e6


async def purge(store: SqliteStore) -> None:
    """Measure a purge of the queue, and the submits of another owner meanwhile."""
    spans = []

    async def submit_all() -> None:
        number = 0
        while True:
            began = time.perf_counter()
            await store.submit(replace(submission(f"p-{number}"), owner=Owner("other")), NOW)
            spans.append(time.perf_counter() - began)
            number += 1
            await asyncio.sleep(SUBMIT_PAUSE_SECONDS)

    submitting = asyncio.create_task(submit_all())
    began = time.perf_counter()
    before = store.next_sequence()
    owner = submission("any").owner
    removed = 0
    while page := await store.purge(HERE, owner, NOW, CANCELLED, before=before, limit=BATCH_JOBS):
        removed += len(page)
    seconds = time.perf_counter() - began
    submitting.cancel()
    cuts = statistics.quantiles(spans, n=100)
    print(
        f"purge of {removed} queued jobs: {removed / seconds:,.0f}/s; submits of another owner"
        f" meanwhile: p50 {cuts[49] * 1e3:.1f} ms, p99 {cuts[98] * 1e3:.1f} ms"
    )


async def queue(path: Path) -> None:
    """Measure the memory of a long queue, and the time to open the store with it."""
    store = SqliteStore(path, SystemDisk(), ThreadRunner)
    async with store.open():
        gc.collect()
        before = resident()
        for first in range(0, QUEUED_JOBS, 500):
            names = range(first, first + 500)
            await asyncio.gather(*(store.submit(submission(f"q-{each}"), NOW) for each in names))
        gc.collect()
        print(
            f"{QUEUED_JOBS} queued jobs of 1 KB: {(resident() - before) / 1e6:.0f} MB of memory,"
            f" {megabytes(path):.0f} MB of disk"
        )
        await timed("take and settle, long queue", 1, 1_000, lambda _: _take_and_settle(store))
    store = SqliteStore(path, SystemDisk(), ThreadRunner)
    began = time.perf_counter()
    async with store.open():
        print(f"opened with these jobs in {time.perf_counter() - began:.2f} s")
        await purge(store)


async def _take_and_settle(store: SqliteStore) -> Job | None:
    [job] = await store.take(HERE, WORKER, limit=1, light_limit=0, now=NOW, run=RUN)
    return await store.settle(job.id, Event.COMPLETE, now=NOW, run=job.run)


async def main(folder: Path) -> None:
    """Run all measurements in a folder, and print the figures."""
    sys.setswitchinterval(THREAD_SWITCH_SECONDS)
    print(
        f"{platform.machine()}, Python {platform.python_version()}, SQLite {sqlite3.sqlite_version}"
    )
    bare(folder / "bare.db")
    interactive()
    store = SqliteStore(folder / "jobs.db", SystemDisk(), ThreadRunner)
    async with store.open():
        await durable(store, "", 4_000)
        load = asyncio.create_task(busy())
        await durable(store, "busy loop: ", 1_000)
        load.cancel()
    await queue(folder / "queue.db")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, default=None)
    given = parser.parse_args().folder
    with tempfile.TemporaryDirectory(dir=given) as made:
        sys.exit(uvloop.run(main(Path(made))))
