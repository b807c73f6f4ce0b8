"""Ended interactive jobs can be read, and use bounded memory at any rate."""

import sys
from collections import deque
from typing import Any

import pytest
from harness.data.jobs import ALICE, HERE, submission
from harness.data.store_steps import T0, WORKER

from proxy.jobs.lifecycle import Event, Status
from proxy.jobs.model import JobError, JobId, Millis, Request
from proxy.store.base import JobStore
from proxy.store.memory import ENDED_INTERACTIVE_MAX_JOBS, MemoryStore

# Of the smaller store of these tests.
MAX_ENDED = 2_000
MAX_ENDED_BYTES = 4_000_000
RETENTION_MILLIS = 60_000
SWEEP_INTERVAL_MILLIS = 250
JOBS_PER_SWEEP = 100


@pytest.fixture
def small() -> MemoryStore:
    """A store with small bounds."""
    return MemoryStore(max_ended=MAX_ENDED, max_ended_bytes=MAX_ENDED_BYTES)


async def end(store: JobStore, job_id: str, now: int, message: str = "", **more: Any) -> None:
    """Submit, take and end an interactive job."""
    await store.submit(submission(job_id, retention=Millis(RETENTION_MILLIS), **more), Millis(now))
    [job] = await store.take(HERE, WORKER, limit=1, light_limit=0, now=Millis(now))
    error = JobError("because", message) if message else None
    event = Event.FAIL if message else Event.COMPLETE
    assert await store.settle(job.id, event, now=Millis(now), attempt=1, error=error)


async def is_there(store: JobStore, job_id: str) -> bool:
    job = await store.get(HERE, ALICE, JobId(job_id))
    assert job is None or job.is_terminal
    return job is not None


async def count(store: JobStore) -> int:
    """Return the number of jobs that can be read."""
    return len(await store.recent(HERE, ALICE, before=None, limit=10**9))


async def test_jobs_at_a_moderate_rate_are_kept_for_their_retention(small: MemoryStore) -> None:
    """32 jobs a second for two minutes: each is kept for 60 s and deleted by the next sweep."""
    ends: deque[tuple[int, str]] = deque()
    for tick in range(120_000 // SWEEP_INTERVAL_MILLIS):
        now = T0 + tick * SWEEP_INTERVAL_MILLIS
        for number in range(8):
            await end(small, f"{tick}-{number}", now)
            ends.append((now, f"{tick}-{number}"))
        await small.forget(Millis(now), JOBS_PER_SWEEP)
        while ends[0][0] + RETENTION_MILLIS <= now:
            assert not await is_there(small, ends.popleft()[1])
        assert await is_there(small, ends[0][1])
    assert await count(small) == len(ends) == 32 * 60


async def test_memory_is_bounded_at_any_rate(small: MemoryStore) -> None:
    """Ten times the rate of the sweeps: the oldest jobs are evicted."""
    for tick in range(8):
        now = T0 + tick * SWEEP_INTERVAL_MILLIS
        for number in range(1_000):
            await end(small, f"{tick}-{number}", now)
        await small.forget(Millis(now), JOBS_PER_SWEEP)
        assert await count(small) == min(MAX_ENDED, (tick + 1) * 1_000)
    assert await is_there(small, "7-999")
    assert await is_there(small, "6-0")
    assert not await is_there(small, "5-999")
    assert (await small.counts(HERE)).completed == 8_000


async def test_the_size_of_errors_is_bounded(small: MemoryStore) -> None:
    long = "x" * 60_000
    last = 2 * MAX_ENDED_BYTES // len(long)
    for number in range(last + 1):
        await end(small, f"{number}", T0, long + str(number))
    assert MAX_ENDED_BYTES // 2 < await count(small) * len(long) <= MAX_ENDED_BYTES
    assert await is_there(small, f"{last}")


async def test_the_size_of_content_types_is_bounded(small: MemoryStore) -> None:
    work = Request(
        "POST", "/v1/audio/transcriptions", "multipart/form-data; boundary=" + "x" * 30_000, b""
    )
    for number in range(2 * MAX_ENDED_BYTES // 30_000):
        await end(small, f"{number}", T0, work=work)
    assert await count(small) * 30_000 <= MAX_ENDED_BYTES


async def test_the_cost_of_an_eviction_is_constant(small: MemoryStore) -> None:
    """The cost is counted in function calls instead of seconds."""
    calls = 0

    def note(_frame: object, event: str, _argument: object) -> None:
        nonlocal calls
        calls += event == "call"

    costs = []
    for first in (0, 2 * MAX_ENDED, 10 * MAX_ENDED):
        for number in range(first, first + MAX_ENDED):
            await end(small, f"{number}", T0)
        calls = 0
        sys.setprofile(note)
        try:
            for number in range(first + MAX_ENDED, first + MAX_ENDED + 300):
                await end(small, f"{number}", T0)
        finally:
            sys.setprofile(None)
        costs.append(calls)
    assert max(costs) < 1.1 * min(costs)


async def test_only_ended_interactive_jobs_are_evicted(store: JobStore) -> None:
    """Checks every store with the default bound."""
    await store.submit(submission("durable", durable=True), T0)
    await store.settle(JobId("durable"), Event.CANCEL, now=T0)
    await store.submit(submission("waits", durable=True), T0)
    await store.submit(submission("queued"), T0)
    for number in range(ENDED_INTERACTIVE_MAX_JOBS + 10):
        await store.submit(submission(f"{number}"), T0)
        assert await store.settle(
            JobId(f"{number}"), Event.CANCEL if number % 2 else Event.EXPIRE, now=T0
        )
    assert [
        await is_there(store, f"{number}") for number in (9, 10, ENDED_INTERACTIVE_MAX_JOBS + 9)
    ] == [
        False,
        True,
        True,
    ]
    assert await is_there(store, "durable")
    assert await count(store) == ENDED_INTERACTIVE_MAX_JOBS + 3
    for name in ("waits", "queued"):
        job = await store.get(HERE, ALICE, JobId(name))
        assert job is not None
        assert job.status is Status.IN_QUEUE
