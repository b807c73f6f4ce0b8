"""The sweeper: a round handles all due jobs, and a slow store delays no call."""

import asyncio
from collections.abc import Sequence
from pathlib import Path

from harness.data.clock import FakeClock
from harness.data.jobs import ALICE, HERE, REQUEST, submission
from harness.data.store_steps import purge
from harness.tools.waiting import until

from proxy.app import Parts, compose
from proxy.jobs.lifecycle import Event, Status
from proxy.jobs.model import Job, JobId, Millis
from proxy.service.durable import BATCH_JOBS
from proxy.settings import MEMORY, Settings
from proxy.store.memory import MemoryStore
from proxy.system import System

JOBS = 3 * BATCH_JOBS + 1


async def test_all_expired_jobs_are_forgotten_in_one_round(parts: Parts, clock: FakeClock) -> None:
    for number in range(JOBS):
        await parts.store.submit(submission(f"{number}", retention=Millis(1_000)), clock.now())
    await purge(parts.store, now=clock.now())
    await parts.runs.forget()
    assert await parts.store.find(JobId("0")) is not None
    clock.pass_time(1)
    await parts.runs.forget()
    assert not await parts.store.recent(HERE, ALICE, before=None, limit=JOBS)


async def test_all_overdue_jobs_end_in_one_round(parts: Parts, clock: FakeClock) -> None:
    for number in range(JOBS):
        until = Millis(clock.now() + 1_000)
        await parts.store.submit(submission(f"{number}", expires_at=until), clock.now())
    assert await parts.store.settle(JobId("7"), Event.CANCEL, now=clock.now())
    await parts.runs.end_overdue()
    assert (await parts.store.counts(HERE)).in_queue == JOBS - 1
    clock.pass_time(1)
    await parts.runs.end_overdue()
    counts = await parts.store.counts(HERE)
    assert (counts.in_queue, counts.timed_out) == (0, JOBS - 1)


class StuckStore(MemoryStore):
    """A store whose disk does not answer."""

    async def due(self, now: Millis, limit: int) -> Sequence[Job]:
        await asyncio.Event().wait()
        return await super().due(now, limit)

    async def forget(self, now: Millis, limit: int) -> int:
        await asyncio.Event().wait()
        return await super().forget(now, limit)


async def test_a_slow_store_does_not_delay_the_ends_of_calls(
    clock: FakeClock, tmp_path: Path
) -> None:
    parts = compose(
        Settings(store=MEMORY, data_dir=tmp_path), System(clock=clock), store=StuckStore()
    )
    [endpoint] = parts.endpoints
    sweeper = parts.sweeper
    durable = parts.durable_sweeper
    loops = (sweeper.serve, durable.serve, durable.serve_overdue, durable.serve_forgetting)
    tasks = [asyncio.create_task(serve()) for serve in loops]
    mailbox = parts.interactive.call(endpoint, ALICE, REQUEST, light=False, queue_timeout=1.0)
    clock.pass_time(1)
    await until(lambda: mailbox.outcome is not None, what="the call is timed out")
    assert mailbox.job.status is Status.TIMED_OUT
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
