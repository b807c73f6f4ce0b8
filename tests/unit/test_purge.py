"""A purge cancels the jobs that are queued when it begins, page by page."""

import asyncio

from harness.data.clock import FakeClock
from harness.data.jobs import ALICE, HERE, submission

from proxy.app import Parts
from proxy.jobs.lifecycle import Status
from proxy.jobs.model import JobId
from proxy.service.durable import BATCH_JOBS

JOBS = 3 * BATCH_JOBS + 1


async def test_jobs_that_are_submitted_during_a_purge_remain(
    parts: Parts, clock: FakeClock
) -> None:
    for number in range(JOBS):
        await parts.store.submit(submission(f"{number}"), clock.now())
    [endpoint] = parts.endpoints
    purging = asyncio.create_task(parts.durable.purge(endpoint, ALICE))
    # Until the first page is done.
    await asyncio.sleep(0)
    assert (await parts.store.counts(HERE)).in_queue == JOBS - BATCH_JOBS
    await parts.store.submit(submission("late"), clock.now())
    assert await purging == JOBS
    late = await parts.store.find(JobId("late"))
    assert late is not None
    assert late.status is Status.IN_QUEUE
    assert (await parts.store.counts(HERE)).cancelled == JOBS


async def test_the_rest_remains_if_the_caller_leaves(parts: Parts, clock: FakeClock) -> None:
    for number in range(JOBS):
        await parts.store.submit(submission(f"{number}"), clock.now())
    [endpoint] = parts.endpoints
    purging = asyncio.create_task(parts.durable.purge(endpoint, ALICE))
    await asyncio.sleep(0)
    purging.cancel()
    await asyncio.gather(purging, return_exceptions=True)
    counts = await parts.store.counts(HERE)
    assert (counts.in_queue, counts.cancelled) == (JOBS - BATCH_JOBS, BATCH_JOBS)
    assert await parts.durable.purge(endpoint, ALICE) == JOBS - BATCH_JOBS
