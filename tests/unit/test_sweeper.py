"""A round of the sweeper handles all due jobs, so that it keeps up with any rate."""

from pathlib import Path

import pytest
from harness.data.clock import FakeClock
from harness.data.jobs import ALICE, HERE, submission

from proxy.app import Parts, compose
from proxy.jobs.lifecycle import Event
from proxy.jobs.model import JobError, JobId, Millis
from proxy.service.sweeper import BATCH_JOBS
from proxy.settings import Settings
from proxy.system import System

JOBS = 3 * BATCH_JOBS + 1


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
def parts(clock: FakeClock, tmp_path: Path) -> Parts:
    """Return the parts of a proxy that has not been started."""
    return compose(Settings(store="memory:", data_dir=tmp_path), System(clock=clock))


async def test_all_expired_jobs_are_forgotten_in_one_round(parts: Parts, clock: FakeClock) -> None:
    for number in range(JOBS):
        await parts.store.submit(
            submission(f"{number}", durable=True, retention=Millis(1_000)), clock.now()
        )
    await parts.store.purge(HERE, ALICE, clock.now(), JobError("because", "Because."))
    await parts.sweeper.forget()
    assert await parts.store.find(JobId("0")) is not None
    clock.pass_time(1)
    await parts.sweeper.forget()
    assert not await parts.store.recent(HERE, ALICE, before=None, limit=JOBS)


async def test_all_overdue_jobs_end_in_one_round(parts: Parts, clock: FakeClock) -> None:
    for number in range(JOBS):
        until = Millis(clock.now() + 1_000)
        await parts.store.submit(
            submission(f"{number}", durable=True, expires_at=until), clock.now()
        )
    assert await parts.store.settle(JobId("7"), Event.CANCEL, now=clock.now())
    await parts.sweeper.end_overdue()
    assert (await parts.store.counts(HERE)).in_queue == JOBS - 1
    clock.pass_time(1)
    await parts.sweeper.end_overdue()
    counts = await parts.store.counts(HERE)
    assert (counts.in_queue, counts.timed_out) == (0, JOBS - 1)
