"""Guarantees of the store in memory beyond the contract: its size is bounded."""

import pytest
from harness.data.jobs import HERE, submission
from harness.data.store_steps import RUN, T0, WORKER

from proxy.jobs.lifecycle import Event
from proxy.jobs.model import Input, Millis
from proxy.store.errors import StoreFullError
from proxy.store.memory import JOB_OVERHEAD_BYTES, MemoryStore

BODY = Input(b"1" * 10_000)


async def test_submits_are_rejected_while_the_store_is_full() -> None:
    store = MemoryStore(max_bytes=2 * (len(BODY.body) + JOB_OVERHEAD_BYTES))
    await store.submit(submission("a", work=BODY), T0)
    await store.submit(submission("b", work=BODY), T0)
    with pytest.raises(StoreFullError):
        await store.submit(submission("c", work=BODY), T0)
    for job in await store.take(HERE, WORKER, limit=9, light_limit=0, now=T0, run=RUN):
        # Writes for existing jobs are still accepted.
        await store.append(job.id, RUN, [b"2" * 50_000])
        assert await store.settle(job.id, Event.COMPLETE, now=T0, run=RUN, output=b"3" * 50_000)
    with pytest.raises(StoreFullError):
        await store.submit(submission("c", work=BODY), T0)
    await store.forget(Millis(T0 + 10**9), 100)
    await store.submit(submission("c", work=BODY), T0)
    assert store._bytes == len(BODY.body) + JOB_OVERHEAD_BYTES
