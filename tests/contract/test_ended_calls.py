"""Interactive jobs that have ended can be asked for, and take bounded memory at whatever rate they end."""

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

MOST, MOST_BYTES = 2_000, 4_000_000  # of the stores here
RETENTION = 60_000
SWEEP = 250  # milliseconds between two calls of `forget`
SWEPT = 100  # jobs of one


@pytest.fixture
def small() -> MemoryStore:
    """A store with smaller bounds."""
    return MemoryStore(max_ended=MOST, max_ended_bytes=MOST_BYTES)


async def end(store: JobStore, job_id: str, now: int, message: str = "", **more: Any) -> None:
    """An interactive job, from its submission to its end."""
    await store.submit(submission(job_id, retention=Millis(RETENTION), **more), Millis(now))
    [job] = await store.take(HERE, WORKER, limit=1, light_limit=0, now=Millis(now))
    error = JobError("because", message) if message else None
    event = Event.FAIL if message else Event.COMPLETE
    assert await store.settle(job.id, event, now=Millis(now), attempt=1, error=error)


async def is_there(store: JobStore, job_id: str) -> bool:
    job = await store.get(HERE, ALICE, JobId(job_id))
    assert job is None or job.is_terminal
    return job is not None


async def count(store: JobStore) -> int:
    """All jobs that can be asked for."""
    return len(await store.recent(HERE, ALICE, before=None, limit=10**9))


async def test_a_moderate_rate_is_kept_for_its_whole_retention(small: MemoryStore) -> None:
    """32 a second for two minutes: each is there for 60 s, and gone one sweep later."""
    ends: deque[tuple[int, str]] = deque()
    for tick in range(120_000 // SWEEP):
        now = T0 + tick * SWEEP
        for number in range(8):
            await end(small, f"{tick}-{number}", now)
            ends.append((now, f"{tick}-{number}"))
        await small.forget(Millis(now), SWEPT)
        while ends[0][0] + RETENTION <= now:
            assert not await is_there(small, ends.popleft()[1])
        assert await is_there(small, ends[0][1])
    assert await count(small) == len(ends) == 32 * 60


async def test_no_rate_makes_memory_grow_beyond_the_bound(small: MemoryStore) -> None:
    """Ten times what the sweeps forget: the oldest make room."""
    for tick in range(8):
        now = T0 + tick * SWEEP
        for number in range(1_000):
            await end(small, f"{tick}-{number}", now)
        await small.forget(Millis(now), SWEPT)
        assert await count(small) == min(MOST, (tick + 1) * 1_000)
    assert await is_there(small, "7-999")
    assert await is_there(small, "6-0")
    assert not await is_there(small, "5-999")
    assert (await small.counts(HERE)).completed == 8_000


async def test_what_is_kept_of_errors_is_bounded(small: MemoryStore) -> None:
    long = "x" * 60_000
    last = 2 * MOST_BYTES // len(long)
    for number in range(last + 1):
        await end(small, f"{number}", T0, long + str(number))
    assert MOST_BYTES // 2 < await count(small) * len(long) <= MOST_BYTES
    assert await is_there(small, f"{last}")


async def test_a_long_content_type_counts_too(small: MemoryStore) -> None:
    work = Request(
        "POST", "/v1/audio/transcriptions", "multipart/form-data; boundary=" + "x" * 30_000, b""
    )
    for number in range(2 * MOST_BYTES // 30_000):
        await end(small, f"{number}", T0, work=work)
    assert await count(small) * 30_000 <= MOST_BYTES


async def test_forgetting_costs_the_same_at_any_number(small: MemoryStore) -> None:
    """Counted in calls of functions, not in seconds."""
    calls = 0

    def note(_frame: object, event: str, _argument: object) -> None:
        nonlocal calls
        calls += event == "call"

    costs = []
    for first in (0, 2 * MOST, 10 * MOST):
        for number in range(first, first + MOST):
            await end(small, f"{number}", T0)
        calls = 0
        sys.setprofile(note)
        try:
            for number in range(first + MOST, first + MOST + 300):
                await end(small, f"{number}", T0)
        finally:
            sys.setprofile(None)
        costs.append(calls)
    assert max(costs) < 1.1 * min(costs)


async def test_only_interactive_jobs_that_have_ended_make_room(store: JobStore) -> None:
    """Of every store, and with the bound that is documented."""
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
