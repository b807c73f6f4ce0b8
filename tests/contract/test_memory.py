"""What the store in memory promises beyond the contract: it is bounded."""

import pytest
from harness.data.jobs import HERE, submission
from harness.data.store_steps import T0, WORKER

from proxy.jobs.lifecycle import Event
from proxy.jobs.model import Input, Millis
from proxy.store.base import StoreFullError
from proxy.store.memory import JOB_OVERHEAD_BYTES, MemoryStore

BODY = Input(b"1" * 10_000)


async def test_memory_is_full_at_some_time_and_has_room_again() -> None:
    store = MemoryStore(max_bytes=2 * (len(BODY.body) + JOB_OVERHEAD_BYTES))
    await store.submit(submission("a", durable=True, work=BODY), T0)
    await store.submit(submission("b", durable=True, work=BODY), T0)
    with pytest.raises(StoreFullError):
        await store.submit(submission("c", durable=True, work=BODY), T0)
    await store.submit(submission("d", work=BODY), T0)  # its client's request holds it
    for job in await store.take(HERE, WORKER, limit=9, light_limit=0, now=T0):
        await store.append(job.id, job.attempt, [b"2" * 50_000])  # what is there may go on
        assert await store.settle(
            job.id, Event.COMPLETE, now=T0, attempt=job.attempt, output=b"3" * 50_000
        )
    with pytest.raises(StoreFullError):
        await store.submit(submission("c", durable=True, work=BODY), T0)
    await store.forget(Millis(T0 + 10**9), 100)
    await store.submit(submission("c", durable=True, work=BODY), T0)
    assert store._bytes == len(BODY.body) + JOB_OVERHEAD_BYTES
