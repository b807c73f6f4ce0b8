"""Each call of the store fails, in eight ways: nothing is lost, and no client receives a 500."""

import asyncio
import json
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from typing import Any, cast

import pytest
import pytest_asyncio
from harness.load.figures import tell
from harness.proxy.queue_api import QueueClient
from harness.proxy.server import CHAT, Proxy, chat, serving
from harness.tools.waiting import until
from harness.worker.puppet import Puppet, puppet

from proxy.store.base import JobStore
from proxy.store.errors import StoreBusyError, StoreFullError
from proxy.store.memory import MemoryStore
from proxy.wire.frames import Chunk, End, Head, Job, Output

TEXTS = ["a", "b", "c"]
# Reads for which the proxy asks periodically are not part of a client's story.
PERIODIC = {"due", "forget", "deliveries", "until_gone"}
# The calls that one story makes; the test checks that there are not more.
MAX_CALLS = 16
# The lease, and 5 s: until then, everything is normal again after a fault.
NORMAL_SECONDS = 20


@dataclass
class Fault:
    """A way to fail: an error, before or after the call has taken effect, and a delay before it."""

    error: Callable[[], Exception] | None
    is_after: bool = False
    times: int = 1
    seconds: float = 0.0


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


@dataclass
class FaultyStore:
    """A store whose calls from `first` on fail; `calls` has the names of all calls."""

    store: MemoryStore = field(default_factory=MemoryStore)
    calls: list[str] = field(default_factory=list)
    first: int = 0
    fault: Fault | None = None

    def __getattr__(self, name: str) -> Any:
        found = getattr(self.store, name)
        if not asyncio.iscoroutinefunction(found) or name in PERIODIC:
            return found

        async def call(*arguments: Any, **named: Any) -> Any:
            number = len(self.calls)
            self.calls.append(name)
            fault = self.fault
            if fault is None or not self.first <= number < self.first + fault.times:
                return await found(*arguments, **named)
            await asyncio.sleep(fault.seconds)
            if fault.error is None:
                return await found(*arguments, **named)
            if name == "take":
                return await found(*arguments, **named) if fault.is_after else []
            if fault.is_after:
                await found(*arguments, **named)
            raise fault.error()

        return call

    def arm(self, fault: Fault, number: int) -> None:
        """Let the call with this number, counted from now on, fail."""
        self.first = len(self.calls) + number
        self.fault = fault

    def disarm(self) -> None:
        self.fault = None


@dataclass
class Scene:
    proxy: Proxy
    store: FaultyStore

    @property
    def queue(self) -> QueueClient:
        return QueueClient(self.proxy)


@pytest_asyncio.fixture
async def scene() -> AsyncIterator[Scene]:
    store = FaultyStore()
    limit = [f"{name}=0" for name in ("run", "status", "stream", "openai")]
    async with serving(job_store=cast("JobStore", store), limit=limit) as proxy:
        yield Scene(proxy, store)


async def answer(worker: Puppet) -> None:
    """Answer every job and every call that the worker receives, until cancelled."""
    while True:
        offered: Job = await worker.job()
        run = offered.job, offered.attempt
        if offered.input:
            texts = [Output(*run, json.dumps(text).encode()) for text in TEXTS]
            await worker.say(*texts, End(*run, "completed"))
        else:
            await worker.say(
                Head(*run, 200, "application/json"), Chunk(*run, b"{}"), End(*run, "completed")
            )


async def accepted(scene: Scene) -> str:
    """Submit a job until it is acknowledged; return its id."""
    while True:
        reply = await scene.queue.call("POST", "run", json={"input": 1})
        if reply.status == 200:
            return str(reply["id"])
        assert reply.status == 503, reply
        assert int(reply.headers["retry-after"]) > 0


async def ended(scene: Scene, job: str) -> dict[str, Any]:
    """Wait for the end of a job, and repeat requests that are answered with 503."""
    while True:
        reply = await scene.queue.call("GET", f"status-sync/{job}?wait=5000")
        if reply.status == 200 and reply["status"] in {"COMPLETED", "FAILED"}:
            return dict(reply.body)
        assert reply.status in {200, 503}, reply


async def consumed(scene: Scene, job: str) -> list[str]:
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


async def story(scene: Scene) -> None:
    """Submit, run and read a job, beside an OpenAI call that needs no store."""
    job = await accepted(scene)
    async with scene.proxy.http.post(CHAT, json=chat()) as response:
        assert response.status == 200, await response.text()
    assert (await ended(scene, job))["output"] == TEXTS
    assert await consumed(scene, job) in (TEXTS, []), "in doubt, an element may count as consumed"
    await until(lambda: not any(each.holds or each.reserved for each in scene.proxy.parts.fleet))


@pytest.mark.parametrize("name", FAULTS)
async def test_every_call_of_the_store_may_fail(scene: Scene, name: str) -> None:
    fault = FAULTS[name]
    async with puppet(scene.proxy, slots=2) as worker:
        answering = asyncio.create_task(answer(worker))
        before = len(scene.store.calls)
        await story(scene)
        calls = len(scene.store.calls) - before
        assert calls <= MAX_CALLS, scene.store.calls[before:]
        longest = 0.0
        for number in range(calls):
            scene.store.arm(fault, number)
            async with asyncio.timeout(NORMAL_SECONDS):
                began = time.monotonic()
                await story(scene)
                longest = max(longest, time.monotonic() - began)
            scene.store.disarm()
        tell(f"{name}: longest story", round(longest, 1), f"<= {NORMAL_SECONDS}", "s")
        answering.cancel()
        await asyncio.gather(answering, return_exceptions=True)


@pytest.mark.parametrize("name", ["full", "busy", "busy for a while"])
async def test_a_worker_that_is_lost_while_the_store_fails_loses_no_job(
    scene: Scene, name: str
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
