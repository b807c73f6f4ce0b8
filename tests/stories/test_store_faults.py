"""Each call of the store fails, in eight ways: nothing is lost, and no client receives a 500."""

import asyncio
import json
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
import pytest_asyncio
from harness.data.faulty_store import Fault, FaultyStore
from harness.load.figures import tell
from harness.proxy.faulty_proxy import FaultyProxy, faulty
from harness.proxy.queue_api import Answer
from harness.proxy.server import CHAT, chat
from harness.tools.waiting import until
from harness.worker.puppet import Puppet, puppet

from proxy.store.errors import StoreBusyError, StoreFullError
from proxy.store.sqlite.store import SqliteStore
from proxy.system import System
from proxy.wire.frames import Body, Chunk, End, Head, Job, Output, Stop

TEXTS = ["a", "b", "c"]
# The calls that one story makes; the test checks that there are not more.
MAX_CALLS = 16
MAX_CALLS_OF_OTHERS = 60
# Of the other operations, `make test` tries these faults only.
QUICK_FAULTS = {"busy", "busy, in doubt"}
# Inputs of a job that runs until it is stopped, and of one that fails once.
HELD = "held"
FAILING = "failing"
HELD_BODY = json.dumps(HELD).encode()
FAILING_BODY = json.dumps(FAILING).encode()
NO_LIMITS = [f"{name}=0" for name in ("run", "status", "stream", "openai")]
# The lease, and 5 s: until then, everything is normal again after a fault.
NORMAL_SECONDS = 20


FAULTS = {
    "full": Fault(lambda: StoreFullError("full")),
    "busy": Fault(lambda: StoreBusyError("locked")),
    "busy for a while": Fault(lambda: StoreBusyError("locked"), times=4),
    "busy, in doubt": Fault(lambda: StoreBusyError("locked"), is_after=True),
    "full for a while": Fault(lambda: StoreFullError("full"), times=4),
    "in doubt for a while": Fault(lambda: StoreBusyError("failed"), is_after=True, times=4),
    "slow": Fault(None, seconds=0.3),
    "slow, then busy": Fault(lambda: StoreBusyError("locked"), seconds=0.3),
}


@pytest_asyncio.fixture
async def scene() -> AsyncIterator[FaultyProxy]:
    async with faulty(FaultyStore(), limit=NO_LIMITS) as found:
        yield found


async def answer(worker: Puppet) -> None:
    """Answer every job and every call that the worker receives, until cancelled."""
    while True:
        frame = await worker.hear()
        if isinstance(frame, Stop):
            await worker.say(End(frame.job, frame.attempt, "released"))
        if not isinstance(frame, Job):
            continue
        offered = frame
        run = offered.job, offered.attempt
        body = await worker.hear()
        assert isinstance(body, Body)
        if body.data == HELD_BODY:
            # It ends when it is stopped.
            continue
        if body.data == FAILING_BODY and offered.attempt == 1:
            await worker.say(End(*run, "failed", "engine_error", "as asked"))
        elif offered.input:
            texts = [Output(*run, json.dumps(text).encode()) for text in TEXTS]
            await worker.say(*texts, End(*run, "completed"))
        else:
            await worker.say(
                Head(*run, 200, "application/json"), Chunk(*run, b"{}"), End(*run, "completed")
            )


async def accepted(scene: FaultyProxy) -> str:
    """Submit a job until it is acknowledged; return its id."""
    while True:
        reply = await scene.queue.call("POST", "run", json={"input": 1})
        if reply.status == 200:
            return str(reply["id"])
        assert reply.status == 503, reply
        assert int(reply.headers["retry-after"]) > 0


async def ended(scene: FaultyProxy, job: str) -> dict[str, Any]:
    """Wait for the end of a job, and repeat requests that are answered with 503."""
    while True:
        reply = await scene.queue.call("GET", f"status-sync/{job}?wait=5000")
        if reply.status == 200 and reply["status"] in {"COMPLETED", "FAILED"}:
            return dict(reply.body)
        assert reply.status in {200, 503}, reply


async def consumed(scene: FaultyProxy, job: str) -> list[str]:
    """Consume a job's output like an SDK; a request that failed with 503 is repeated."""
    texts: list[str] = []
    while True:
        reply = await scene.queue.stream(job)
        if reply.status == 503:
            continue
        assert reply.status == 200, reply
        texts += [element["output"] for element in reply["stream"]]
        if reply["status"] == "COMPLETED" and not reply["stream"]:
            return texts


async def story(scene: FaultyProxy) -> None:
    """Submit, run and read a job, beside an OpenAI call that needs no store."""
    job = await accepted(scene)
    async with scene.proxy.http.post(CHAT, json=chat()) as response:
        assert response.status == 200, await response.text()
    assert (await ended(scene, job))["output"] == TEXTS
    assert await consumed(scene, job) in (TEXTS, []), "in doubt, an element may count as consumed"
    await until(lambda: not any(each.holds or each.reserved for each in scene.proxy.parts.fleet))


async def repeated(scene: FaultyProxy, method: str, path: str, **more: Any) -> Answer:
    """Send a request until it is not refused with 503; return its response."""
    while True:
        reply = await scene.queue.call(method, path, **more)
        if reply.status != 503:
            return reply
        assert int(reply.headers["retry-after"]) > 0


async def other_operations(scene: FaultyProxy) -> None:
    """Use the operations that `story` does not: on running, failed and finished jobs."""
    # With a key, a request that was refused in doubt submits one job only.
    key = {"Idempotency-Key": uuid4().hex}
    held = (await repeated(scene, "POST", "run", json={"input": HELD}, headers=key))["id"]
    cancelled = await repeated(scene, "POST", f"cancel/{held}")
    assert (cancelled.status, cancelled["status"]) == (200, "CANCELLED")
    synchronous = await repeated(scene, "POST", "runsync", json={"input": 1})
    assert synchronous.status == 200, synchronous
    # If the store did not answer after the submission, the response has the job's id only.
    assert (await ended(scene, synchronous["id"]))["output"] == TEXTS
    failing = (await repeated(scene, "POST", "run", json={"input": FAILING}))["id"]
    assert (await ended(scene, failing))["status"] == "FAILED"
    # In doubt, the job is queued again by the request that was refused.
    assert (await repeated(scene, "POST", f"retry/{failing}")).status in {200, 409}
    assert (await ended(scene, failing))["output"] == TEXTS
    limited = await repeated(scene, "GET", f"status/{failing}?ttl=600000")
    assert (limited.status, limited["output"]) == (200, TEXTS)
    page = await repeated(scene, "GET", f"stream/{failing}?after=0")
    assert [element["output"] for element in page["stream"]] == TEXTS
    assert (await repeated(scene, "GET", "requests?limit=5")).status == 200
    assert (await repeated(scene, "POST", "purge-queue")).status == 200
    await until(lambda: not any(each.holds or each.reserved for each in scene.proxy.parts.fleet))


async def fail_each_call(
    scene: FaultyProxy, name: str, max_calls: int, play: Callable[[FaultyProxy], Awaitable[None]]
) -> None:
    """Play a story once for each call of the store that it makes, and let this call fail."""
    async with puppet(scene.proxy, slots=2) as worker:
        answering = asyncio.create_task(answer(worker))
        before = len(scene.store.calls)
        await play(scene)
        calls = len(scene.store.calls) - before
        assert calls <= max_calls, scene.store.calls[before:]
        longest = 0.0
        for number in range(calls):
            scene.store.arm(FAULTS[name], number)
            async with asyncio.timeout(NORMAL_SECONDS):
                began = time.monotonic()
                await play(scene)
                longest = max(longest, time.monotonic() - began)
            scene.store.disarm()
        tell(f"{name}: longest story", round(longest, 1), f"<= {NORMAL_SECONDS}", "s")
        answering.cancel()
        await asyncio.gather(answering, return_exceptions=True)


@pytest.mark.parametrize("name", FAULTS)
async def test_every_call_of_the_store_may_fail(scene: FaultyProxy, name: str) -> None:
    await fail_each_call(scene, name, MAX_CALLS, story)


@pytest.mark.slow
async def test_every_call_of_sqlite_may_fail(tmp_path: Path) -> None:
    system = System()
    sqlite = SqliteStore(tmp_path / "jobs.db", system.disk, system.start_runner)
    async with faulty(FaultyStore(sqlite), limit=NO_LIMITS) as scene:
        await fail_each_call(scene, "busy", MAX_CALLS, story)


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=() if name in QUICK_FAULTS else pytest.mark.torture)
        for name in FAULTS
    ],
)
async def test_every_call_of_other_operations_may_fail(scene: FaultyProxy, name: str) -> None:
    await fail_each_call(scene, name, MAX_CALLS_OF_OTHERS, other_operations)


@pytest.mark.parametrize("name", ["full", "busy", "busy for a while"])
async def test_a_worker_that_is_lost_while_the_store_fails_loses_no_job(
    scene: FaultyProxy, name: str
) -> None:
    jobs = [await accepted(scene) for _ in range(4)]
    async with puppet(scene.proxy, slots=5) as worker:
        for _ in jobs:
            await worker.job()
        call = asyncio.create_task(scene.proxy.http.post(CHAT, json=chat()))
        await worker.job()
        scene.store.arm(FAULTS[name], 0)
    # The worker is gone: all runs are lost while the store fails.
    async with puppet(scene.proxy, slots=5) as worker:
        answering = asyncio.create_task(answer(worker))
        async with asyncio.timeout(20):
            async with await call as response:
                assert response.status == 200
            for job in jobs:
                assert (await ended(scene, job))["output"] == TEXTS
        answering.cancel()
        await asyncio.gather(answering, return_exceptions=True)
