"""Runs from before a start of the proxy go on although the store fails while they are resumed."""

import asyncio
from collections.abc import AsyncIterator
from typing import cast

import pytest
import pytest_asyncio
from harness.data.faulty_store import Fault, FaultyStore
from harness.data.gated_store import Call, GatedStore
from harness.data.jobs import HERE
from harness.data.store_steps import RUN
from harness.proxy.faulty_proxy import FaultyProxy, faulty
from harness.proxy.queue_api import QueueClient
from harness.proxy.server import CHAT, chat, serving
from harness.runpod.raw_worker import Raw
from harness.tools.waiting import until
from harness.worker.puppet import Puppet, puppet, whole

from proxy.jobs.lifecycle import Event
from proxy.jobs.model import JobId, WorkerId
from proxy.store.base import JobStore
from proxy.store.errors import StoreBusyError, StoreFullError
from proxy.system import SystemClock
from proxy.wire import frames

NATIVE = "w-puppet"
# More than fits into the buffers of a connection.
BODY_BYTES = 9_000_000
RUNPOD = "pod-1"
ERRORS = {"busy": StoreBusyError("locked"), "full": StoreFullError("full")}


@pytest_asyncio.fixture
async def scene() -> AsyncIterator[FaultyProxy]:
    async with faulty(FaultyStore()) as found:
        yield found


async def orphaned(queue: QueueClient, worker: str, value: object = 1) -> str:
    """Submit a job that ran on this worker when the proxy was started; return its id."""
    parts = queue.proxy.parts
    job = await queue.run(value)
    taken = await parts.store.take(
        HERE, WorkerId(worker), limit=1, light_limit=0, now=SystemClock().now(), run=RUN
    )
    parts.orphans.find(taken)
    return job


def listing(job: str) -> frames.Hello:
    """Return the hello of a worker that sends lost output again, and has this run."""
    holds = [frames.Hold(job, 1, frames.SENT_AGAIN)]
    features = list(frames.FEATURES)
    return frames.Hello(frames.PROTOCOL, NATIVE, "puppet 1", [], holds, "process", features)


async def acknowledged(worker: Puppet, job: str) -> None:
    """Wait until the proxy acknowledges what it has of a run, and does not stop it."""
    while not isinstance(frame := await worker.hear(), frames.Acknowledge) or frame.job != job:
        assert not isinstance(frame, frames.Stop)


@pytest.mark.parametrize("error", ERRORS)
async def test_a_worker_resumes_its_run_as_soon_as_the_store_answers(
    scene: FaultyProxy, error: str
) -> None:
    job = await orphaned(scene.queue, NATIVE)
    scene.store.arm(Fault(lambda: ERRORS[error], times=4), 0, "adopt")
    async with puppet(scene.proxy, listing(job), frames.Credit(1, 0)) as worker:
        await acknowledged(worker, job)
        assert scene.store.calls.count("adopt") == 5
        await worker.say(frames.Output(job, 1, b'"a"'), frames.End(job, 1, "completed"))
        assert (await scene.queue.end(job))["output"] == ["a"]


async def test_a_run_that_waits_for_the_store_occupies_one_slot() -> None:
    """The other slots serve calls meanwhile."""
    store = GatedStore()
    async with serving(job_store=cast("JobStore", store)) as proxy:
        job = await orphaned(QueueClient(proxy), NATIVE)
        gate = store.hold(Call("adopt"), position=False)
        async with puppet(proxy, listing(job), frames.Credit(2, 0)) as worker:
            calls = [asyncio.create_task(proxy.http.post(CHAT, json=chat())) for _ in range(2)]
            first = await worker.job()
            await until(lambda: len(proxy.parts.interactive) == 2, what="both calls are there")
            [member] = proxy.parts.fleet
            assert (member.held, member.credit) == (1, 0)
            await worker.say(*whole(first))
            await worker.say(*whole(await worker.job()))
            for call in calls:
                async with await call as response:
                    assert response.status == 200
            gate.open()
            await acknowledged(worker, job)


async def test_the_stop_of_an_earlier_attempt_keeps_the_body_of_the_next_one() -> None:
    """The store says too late that the attempt has ended, and the worker has the next one."""
    store = GatedStore()
    async with serving(job_store=cast("JobStore", store)) as proxy:
        queue = QueueClient(proxy)
        job = await orphaned(queue, NATIVE, "x" * BODY_BYTES)
        gate = store.hold(Call("adopt"), position=False)
        async with puppet(proxy, listing(job), frames.Credit(2, 0)) as worker:
            await gate.reached.wait()
            assert await store.settle(JobId(job), Event.EXPIRE, now=SystemClock().now())
            assert (await queue.call("POST", f"retry/{job}")).status == 200
            offered = await worker.job()
            assert offered.attempt == 2
            gate.open()
            size = 0
            while size < offered.size:
                frame = await worker.hear()
                size += len(frame.data) if isinstance(frame, frames.Body) else 0


async def test_a_second_connection_while_the_store_is_asked_stops_nothing() -> None:
    store = GatedStore()
    async with serving(job_store=cast("JobStore", store)) as proxy:
        queue = QueueClient(proxy)
        job = await orphaned(queue, NATIVE)
        gate = store.hold(Call("adopt"), position=False)
        async with puppet(proxy, listing(job), frames.Credit(1, 0)):
            await gate.reached.wait()
            async with puppet(proxy, listing(job), frames.Credit(1, 0)) as worker:
                await until(lambda: any(each.slots for each in proxy.parts.fleet))
                gate.open()
                await acknowledged(worker, job)
                await worker.say(frames.Output(job, 1, b'"a"'), frames.End(job, 1, "completed"))
                assert (await queue.end(job))["output"] == ["a"]


@pytest.mark.parametrize("name", ["read", "adopt"])
async def test_a_posted_result_waits_for_the_store(scene: FaultyProxy, name: str) -> None:
    job = await orphaned(scene.queue, RUNPOD)
    scene.store.arm(Fault(lambda: ERRORS["busy"], times=4), 0, name)
    async with Raw(scene.proxy, RUNPOD) as raw:
        assert await raw.done(job, {"output": "a"}) == 200
    assert (await scene.queue.end(job))["output"] == "a"


async def test_a_ping_does_not_wait_for_the_store(scene: FaultyProxy) -> None:
    job = await orphaned(scene.queue, RUNPOD)
    scene.store.arm(Fault(lambda: ERRORS["busy"]), 0, "adopt")
    async with Raw(scene.proxy, RUNPOD) as raw:
        await raw.ping(job)
        assert len(scene.proxy.parts.orphans) == 1
        await raw.ping(job)
        assert not len(scene.proxy.parts.orphans)
        assert await raw.done(job, {"output": "a"}) == 200
    assert (await scene.queue.end(job))["output"] == "a"


async def test_a_worker_that_may_have_a_run_from_before_the_start_gets_no_other_one_of_its_job(
    scene: FaultyProxy,
) -> None:
    """Its results do not name the attempt."""
    job = await orphaned(scene.queue, RUNPOD)
    async with Raw(scene.proxy, RUNPOD) as raw:
        poll = asyncio.create_task(raw.take(busy=True))
        await until(lambda: [one.id for one in scene.proxy.parts.fleet] == [RUNPOD])
        store = scene.proxy.parts.store
        assert await store.settle(JobId(job), Event.EXPIRE, now=SystemClock().now())
        assert (await scene.queue.call("POST", f"retry/{job}")).status == 200
        for _ in range(2):
            await raw.ping(job)
        assert await raw.stops() == [job]
        assert not poll.done()
        poll.cancel()
        # It has no job any more.
        assert (await raw.next_job())["id"] == job


async def test_an_end_that_could_not_be_written_is_not_acknowledged(scene: FaultyProxy) -> None:
    job = await scene.queue.run(1)
    first = frames.Hello(
        frames.PROTOCOL, NATIVE, "puppet 1", [], [], "process", list(frames.FEATURES)
    )
    async with puppet(scene.proxy, first, frames.Credit(1, 0)) as worker:
        run = await worker.job()
        scene.store.arm(Fault(lambda: RuntimeError("a bug"), times=99), 0, "settle")
        await worker.say(frames.End(job, run.attempt, "completed"))
        await until(lambda: scene.store.calls and not len(scene.proxy.parts.recorder))
        # What is sent now follows everything that concerns the end.
        call = asyncio.create_task(scene.proxy.http.post(CHAT, json=chat()))
        while not isinstance(frame := await worker.hear(), frames.Job):
            assert not isinstance(frame, frames.Acknowledge)
        await worker.say(*whole(frame))
        async with await call as response:
            assert response.status == 200


async def test_a_result_that_could_not_be_written_is_not_accepted(scene: FaultyProxy) -> None:
    job = await scene.queue.run(1)
    async with Raw(scene.proxy, RUNPOD) as raw:
        assert (await raw.next_job())["id"] == job
        scene.store.arm(Fault(lambda: RuntimeError("a bug"), times=99), 0, "settle")
        assert await raw.done(job, {"output": "a"}) == 503
        assert await raw.done(job, {"output": "a"}) == 503
    found = await scene.store.find(JobId(job))
    assert found is not None
    assert not found.is_terminal
