"""A process that is killed at any time loses no acknowledged write."""

import asyncio
import os
import random
import shutil
import sqlite3
import sys
from asyncio.subprocess import DEVNULL, PIPE
from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from harness.data.jobs import HERE
from harness.data.store_steps import sqlite_store, take

from proxy.jobs.lifecycle import Event, Status
from proxy.jobs.model import JobId

ROOT = Path(__file__).parents[2]


@dataclass
class Ledger:
    """The acknowledged writes."""

    submitted: set[str] = field(default_factory=set)
    cancelled: set[str] = field(default_factory=set)
    completed: dict[str, int] = field(default_factory=dict)
    attempts: defaultdict[str, list[int]] = field(default_factory=lambda: defaultdict(list))
    cursors: dict[tuple[str, int], int] = field(default_factory=dict)

    def note(self, line: str) -> None:
        """Record a line of the process's output."""
        event, job_id, *numbers = [*line.split(), ""]
        match event:
            case "submitted":
                self.submitted.add(job_id)
            case "cancelled":
                self.cancelled.add(job_id)
            case "taken":
                self.attempts[job_id].append(int(numbers[0]))
            case "appended":
                self.cursors[job_id, int(numbers[0])] = int(numbers[1])
            case Event.COMPLETE:
                assert job_id not in self.completed
                self.completed[job_id] = int(numbers[0])


async def run_and_kill(path: Path, name: str, lines: int, ledger: Ledger) -> None:
    """Kill a process after it has written this many lines; record all lines that it wrote."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "harness.load.store_storm", str(path), name),
        cwd=ROOT, stdout=PIPE, env=os.environ | {"PYTHONPATH": "tests"}, limit=1 << 24,
    )  # fmt: skip
    assert process.stdout is not None
    for number in range(lines):
        line = await process.stdout.readline()
        assert line, f"the process ended by itself after {number} lines"
        ledger.note(line.decode())
    process.kill()
    for line in (await process.stdout.read()).decode().splitlines():
        ledger.note(line)
    await process.wait()


def check_integrity(path: Path) -> None:
    """Check that the file is intact, and that no job was written partially."""
    with sqlite3.connect(path) as db:
        assert db.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        assert db.execute("PRAGMA foreign_key_check").fetchall() == []
        bodiless = """SELECT count(*) FROM jobs
                      WHERE finished_at IS NULL AND number NOT IN (SELECT job FROM works)"""
        assert db.execute(bodiless).fetchall() == [(0,)]
        early = """SELECT count(*) FROM jobs
                   WHERE finished_at IS NULL AND number IN (SELECT job FROM results)"""
        assert db.execute(early).fetchall() == [(0,)]
        rows = db.execute(
            "SELECT status, count(*) FROM jobs WHERE finished_at IS NOT NULL GROUP BY status"
        ).fetchall()
        ended = dict(db.execute("SELECT name, number FROM ended").fetchall())
    db.close()
    # The process retries failed jobs only.
    retried = ended.pop(Event.RETRY, 0)
    failed = ended.pop(Status.FAILED, 0) - retried
    assert ended | {Status.FAILED: failed} == {Status.FAILED: 0} | dict(rows)


async def check_acknowledged(path: Path, ledger: Ledger) -> None:
    """Check that every acknowledged write is in the store."""
    store = sqlite_store(path)
    async with store.open():
        for job_id in ledger.submitted:
            job = await store.find(JobId(job_id))
            assert job is not None, f"{job_id} was lost"
            assert job.attempt >= max(ledger.attempts[job_id], default=0)
            if job_id in ledger.cancelled:
                assert job.status is Status.CANCELLED
            if job_id in ledger.completed:
                assert (job.status, job.attempt) == (Status.COMPLETED, ledger.completed[job_id])
                assert job.output == f"{job_id} {job.attempt}".encode()
            outputs, _ = await store.read(job.id, 0, 99)
            assert set(outputs) <= {f"{job_id} {job.attempt}".encode()}
            assert (
                len(outputs) >= ledger.cursors.get((job_id, job.attempt), 0)
                or job.status is Status.IN_QUEUE
            )
        counts = await store.counts(HERE)
        queued = await take(store, limit=10**6, light_limit=0)
        assert counts.in_queue == len(queued)
        assert counts.in_progress == len(await store.running()) - len(queued)
    for job_id, attempts in ledger.attempts.items():
        assert sorted(set(attempts)) == sorted(attempts), (
            f"an attempt of {job_id} was handed out twice"
        )


async def kill_and_check(path: Path, kills: int, max_lines: int) -> None:
    ledger = Ledger()
    chance = random.Random(kills)
    for number in range(kills):
        await run_and_kill(path, f"{number}", chance.randint(1, max_lines), ledger)
        check_integrity(path)
    await check_acknowledged(path, ledger)
    assert ledger.submitted
    assert ledger.completed


async def test_a_killed_process_loses_no_acknowledged_write(tmp_path: Path) -> None:
    await kill_and_check(tmp_path / "jobs.db", kills=4, max_lines=1_500)


ACKNOWLEDGE_ONE_BY_ONE = """
import asyncio, sys
from pathlib import Path
from harness.load.store_storm import say
from harness.data.store_steps import T0, take, sqlite_store
from harness.data.jobs import submission
from proxy.jobs.lifecycle import Event

async def main():
    store = sqlite_store(Path(sys.argv[1]))
    async with store.open():
        say("acknowledged", "open")
        for number in range(20):
            await store.submit(submission(f"{number}"), T0)
            say("acknowledged", "submit", number)
            [job] = await take(store)
            say("acknowledged", "take", number)
            await store.settle(job.id, Event.COMPLETE, now=T0, run=job.run)
            say("acknowledged", "end", number)

asyncio.run(main())
"""


@pytest.mark.skipif(
    shutil.which("strace") is None, reason="needs strace to see the order of writes"
)
async def test_writes_are_acknowledged_after_they_are_on_the_disk(tmp_path: Path) -> None:
    calls = tmp_path / "calls"
    process = await asyncio.create_subprocess_exec(
        *("strace", "-f", "-y", "-o", str(calls), "-e", "trace=write,pwrite64,fsync,fdatasync"),
        *(sys.executable, "-c", ACKNOWLEDGE_ONE_BY_ONE, str(tmp_path / "jobs.db")),
        cwd=ROOT, stdout=DEVNULL, env=os.environ | {"PYTHONPATH": "tests"},
    )  # fmt: skip
    assert await process.wait() == 0
    written = synced = acknowledged = 0
    syncing = ""
    for line in calls.read_text().splitlines():
        thread = line.split()[0]
        if "jobs.db-wal>" in line and "pwrite64(" in line:
            written += 1
        elif "jobs.db-wal>" in line and "sync(" in line:
            if "unfinished" in line:
                syncing = thread
            else:
                syncing = ""
                synced = written
        elif thread == syncing and "sync resumed" in line:
            syncing = ""
            synced = written
        elif '"acknowledged' in line:
            assert written == synced > acknowledged, line
            acknowledged = written
    assert acknowledged


@pytest.mark.torture
@pytest.mark.timeout(1_200)
async def test_a_process_that_is_killed_many_times_loses_no_acknowledged_write(
    tmp_path: Path,
) -> None:
    await kill_and_check(tmp_path / "jobs.db", kills=100, max_lines=5_000)
