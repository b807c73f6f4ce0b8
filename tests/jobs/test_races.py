"""Two operations on one job at the same time: one wins, and both callers receive the real outcome.

Each pair runs in both orders: one operation is held before, and after, its decisive call of the
store has taken effect, while the other one runs as far as it can.
"""

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, cast

import pytest
from harness.data.clock import FakeClock
from harness.data.gated_store import Call, GatedStore
from harness.data.jobs import HERE
from harness.proxy.queue_api import QueueClient
from harness.proxy.server import Proxy, serving
from harness.tools.waiting import until
from harness.worker.puppet import Puppet, hello, puppet

from proxy.jobs.lifecycle import Event
from proxy.jobs.model import WorkerId
from proxy.store.base import JobStore
from proxy.wire.frames import Credit, End, Hold, Job, Output

pytestmark = pytest.mark.slow

TEXTS = ["a", "b", "c"]
EXECUTION_SECONDS = 600.0
DAY_SECONDS = 86_400.0
# Time for the other operation to do what it can while the first one is held.
OTHER_SECONDS = 0.4

ORDERS = pytest.mark.parametrize("is_reversed", [False, True], ids=["", "reversed"])
POSITIONS = pytest.mark.parametrize("position", [False, True], ids=["before", "after"])


@dataclass
class Scene:
    """A proxy whose store and clock are controlled; `job` is the job of the race."""

    proxy: Proxy
    store: GatedStore
    clock: FakeClock
    job: str = ""
    tasks: list[asyncio.Task[Any]] = field(default_factory=list)

    @property
    def queue(self) -> QueueClient:
        return QueueClient(self.proxy)

    async def status(self) -> Any:
        """Return the answer of `status`."""
        return (await self.queue.status(self.job)).body


@dataclass(frozen=True)
class Operation:
    """An operation of a race: its decisive call of the store, and the function that starts it."""

    call: Call
    start: Callable[[Scene], Awaitable[Any]]


@asynccontextmanager
async def scene() -> AsyncIterator[Scene]:
    store, clock = GatedStore(), FakeClock()
    async with serving(clock=clock, job_store=cast("JobStore", store)) as proxy:
        one = Scene(proxy, store, clock)
        yield one
        for task in one.tasks:
            task.cancel()
        await asyncio.gather(*one.tasks, return_exceptions=True)


async def race(
    scene: Scene, first: Operation, second: Operation, *, is_reversed: bool, position: bool
) -> tuple[Any, Any]:
    """Hold the first operation at its decisive call while the second one runs; return both answers.

    `is_reversed`: hold the second one instead.
    """
    held, other = (second, first) if is_reversed else (first, second)
    gate = scene.store.hold(held.call, position)
    holding = asyncio.create_task(_start(held, scene))
    await asyncio.wait_for(gate.reached.wait(), 10)
    running = asyncio.create_task(_start(other, scene))
    await asyncio.wait({running}, timeout=OTHER_SECONDS)
    gate.open()
    answers = {held.call: await holding, other.call: await running}
    return answers[first.call], answers[second.call]


async def _start(operation: Operation, scene: Scene) -> Any:
    async with asyncio.timeout(20):
        return await operation.start(scene)


async def serve(scene: Scene, worker: Puppet) -> None:
    """Answer the jobs of a worker, and confirm that stopped runs have ended."""
    while True:
        frame = await worker.hear()
        if isinstance(frame, Job):
            await worker.say(*_outputs(frame.job, frame.attempt))


def _outputs(job: str, attempt: int) -> list[Any]:
    values = [Output(job, attempt, json.dumps(text).encode()) for text in TEXTS]
    return [*values, End(job, attempt, "completed")]


@asynccontextmanager
async def running(scene: Scene) -> AsyncIterator[Puppet]:
    """Submit a job that a worker has begun."""
    async with puppet(scene.proxy, slots=1) as worker:
        scene.job = await scene.queue.run(1)
        await worker.job()
        yield worker


def completing(worker: Puppet) -> Operation:
    """Return the end of the job's first run."""

    async def start(scene: Scene) -> None:
        await worker.say(*_outputs(scene.job, 1))
        await _returned(scene, Call("settle", Event.COMPLETE))

    return Operation(Call("settle", Event.COMPLETE), start)


async def _returned(scene: Scene, call: Call) -> None:
    await until(lambda: bool(scene.store.results(call)), 10, f"{call} has returned")


async def _cancel(scene: Scene) -> Any:
    return (await scene.queue.call("POST", f"cancel/{scene.job}")).body


CANCEL = Operation(Call("settle", Event.CANCEL), _cancel)


async def _time_out(scene: Scene) -> None:
    scene.clock.pass_time(EXECUTION_SECONDS)
    await until(lambda: ends(scene) > 0)


TIME_OUT = Operation(Call("settle", Event.EXPIRE), _time_out)


async def _purge(scene: Scene) -> int:
    return int((await scene.queue.call("POST", "purge-queue"))["removed"])


PURGE = Operation(Call("purge"), _purge)


async def _take(scene: Scene) -> None:
    """Connect a worker that answers every job."""

    async def work() -> None:
        async with puppet(scene.proxy, hello("w-next"), Credit(1, 0)) as worker:
            await serve(scene, worker)

    scene.tasks.append(asyncio.create_task(work()))
    await until(lambda: scene.proxy.ready == 1, what="the worker is ready")


TAKE = Operation(Call("take"), _take)


def ends(scene: Scene) -> int:
    """Return the number of events that have ended a job."""
    events = (Event.COMPLETE, Event.FAIL, Event.CANCEL, Event.EXPIRE)
    found = [result for event in events for result in scene.store.results(Call("settle", event))]
    return sum(result is not None for result in found)


async def is_ended(scene: Scene) -> bool:
    shown = await scene.status()
    return shown["status"] not in ("IN_QUEUE", "IN_PROGRESS")


@ORDERS
@POSITIONS
async def test_cancel_and_complete(*, is_reversed: bool, position: bool) -> None:
    async with scene() as one, running(one) as worker:
        answer, _ = await race(
            one, CANCEL, completing(worker), is_reversed=is_reversed, position=position
        )
        shown = await one.status()
        assert shown["status"] == answer["status"]
        assert shown["status"] == ("COMPLETED" if is_reversed is position else "CANCELLED")
        assert ends(one) == 1
        if shown["status"] == "COMPLETED":
            assert shown["output"] == TEXTS


@ORDERS
@POSITIONS
async def test_done_and_timeout(*, is_reversed: bool, position: bool) -> None:
    async with scene() as one, running(one) as worker:
        await race(one, completing(worker), TIME_OUT, is_reversed=is_reversed, position=position)
        shown = await one.status()
        assert shown["status"] == ("TIMED_OUT" if is_reversed is position else "COMPLETED")
        assert ends(one) == 1
        await until(lambda: one.proxy.ready == 1)
        assert shown["status"] == "TIMED_OUT" or shown["output"] == TEXTS


@ORDERS
@POSITIONS
async def test_purge_and_take(*, is_reversed: bool, position: bool) -> None:
    async with scene() as one:
        one.job = await one.queue.run(1)
        removed, _ = await race(one, PURGE, TAKE, is_reversed=is_reversed, position=position)
        await until(lambda: is_ended(one))
        shown = await one.status()
        assert (shown["status"], removed) in [("CANCELLED", 1), ("COMPLETED", 0)]
        assert shown["status"] == "CANCELLED" or shown["output"] == TEXTS


@ORDERS
@POSITIONS
async def test_take_and_time_to_live(*, is_reversed: bool, position: bool) -> None:
    async def expire(scene: Scene) -> None:
        scene.clock.pass_time(DAY_SECONDS)
        await until(lambda: ends(scene) > 0)

    async with scene() as one:
        one.job = await one.queue.run(1)
        expiring = Operation(Call("settle", Event.EXPIRE), expire)
        if is_reversed:
            # A job that has expired may be taken in the moment before that is noticed.
            await race(one, TAKE, expiring, is_reversed=True, position=position)
        else:
            gate = one.store.hold(TAKE.call, position)
            taking = asyncio.create_task(_take(one))
            await gate.reached.wait()
            one.clock.pass_time(DAY_SECONDS)
            await asyncio.wait({taking}, timeout=OTHER_SECONDS)
            gate.open()
            await taking
        await until(lambda: is_ended(one))
        assert (await one.status())["status"] in ("TIMED_OUT", "COMPLETED")
        assert ends(one) == 1
        await until(lambda: not any(each.holds for each in one.proxy.parts.fleet))


@POSITIONS
async def test_take_and_leave(*, position: bool) -> None:
    """The worker leaves while a job is taken for it; the job runs on the next worker."""
    async with scene() as one:
        one.job = await one.queue.run(1)
        gate = one.store.hold(TAKE.call, position)
        async with puppet(one.proxy, slots=1):
            await gate.reached.wait()
        await until(lambda: not list(one.proxy.parts.fleet), what="the worker is gone")
        gate.open()
        await _take(one)
        await until(lambda: is_ended(one))
        shown = await one.status()
        assert (shown["status"], shown["output"], shown["retries"]) == ("COMPLETED", TEXTS, 0)


@ORDERS
@POSITIONS
async def test_consume_and_lose(*, is_reversed: bool, position: bool) -> None:
    """Text of a run that is lost is delivered, and the job fails; or it is not, and the job runs
    again.
    """

    async def consume(scene: Scene) -> list[str]:
        reply = await scene.queue.stream(scene.job)
        return [element["output"] for element in reply["stream"]]

    async with scene() as one, running(one) as worker:
        await worker.say(Output(one.job, 1, b'"first"'))
        await _returned(one, Call("append"))

        async def lose(_: Scene) -> None:
            await worker.socket.close(code=1001)
            await until(lambda: not list(one.proxy.parts.fleet), what="the worker is gone")

        consuming = Operation(Call("consume"), consume)
        losing = Operation(Call("settle", Event.RELEASE), lose)
        gate_first, _ = (losing, consuming) if is_reversed else (consuming, losing)
        gate = one.store.hold(gate_first.call, position)
        tasks = [asyncio.create_task(_start(gate_first, one))]
        await gate.reached.wait()
        other = consuming if is_reversed else losing
        tasks.append(asyncio.create_task(_start(other, one)))
        await asyncio.wait(tasks, timeout=OTHER_SECONDS)
        gate.open()
        await _take(one)
        results = await asyncio.gather(*tasks)
        texts = results[1] if is_reversed else results[0]
        await until(lambda: is_ended(one))
        shown = await one.status()
        if shown["status"] == "FAILED":
            assert texts == ["first"]
        else:
            assert (shown["status"], shown["output"]) == ("COMPLETED", TEXTS)
            assert texts == TEXTS[: len(texts)]


@POSITIONS
@pytest.mark.parametrize("then", ["cancel", "retry"])
async def test_adopt_and_cancel_or_retry(then: str, *, position: bool) -> None:
    """A worker comes back after a restart with a run whose job ends, and is queued again."""

    async def end_or_retry() -> None:
        if then == "cancel":
            await _cancel(one)
        else:
            await _time_out(one)
            assert (await one.queue.call("POST", f"retry/{one.job}")).status == 200

    async with scene() as one:
        parts = one.proxy.parts
        one.job = await one.queue.run(1)
        taken = await parts.store.take(
            HERE, WorkerId("w-back"), limit=1, light_limit=0, now=one.clock.now(), run=1
        )
        parts.orphans.find(taken)
        gate = one.store.hold(Call("adopt"), position)
        first = hello("w-back", holds=[Hold(one.job, 1, 0)]), Credit(1, 0)
        async with puppet(one.proxy, *first) as worker:
            await gate.reached.wait()
            ending = asyncio.create_task(end_or_retry())
            await asyncio.wait({ending}, timeout=OTHER_SECONDS)
            gate.open()
            await ending
            stop = await worker.stopped()
            assert (stop.job, stop.attempt) == (one.job, 1)
            # The late end of the old run changes nothing.
            await worker.say(Output(one.job, 1, b'"old"'), End(one.job, 1, "completed"))
            if then == "retry":
                offered = await worker.job()
                assert offered.attempt == 2
                await worker.say(*_outputs(one.job, 2))
            await until(lambda: is_ended(one))
        shown = await one.status()
        if then == "cancel":
            assert shown["status"] == "CANCELLED"
        else:
            assert (shown["status"], shown["output"]) == ("COMPLETED", TEXTS)


@ORDERS
@POSITIONS
async def test_retry_and_forget(*, is_reversed: bool, position: bool) -> None:
    """A job is retried in the moment in which its retention ends."""

    async def retry(scene: Scene) -> int:
        reply = await scene.queue.call("POST", f"retry/{scene.job}")
        return reply.status

    async def forget(scene: Scene) -> None:
        before = len(scene.store.results(Call("forget")))
        scene.clock.pass_time(DAY_SECONDS / 2)
        await until(lambda: len(scene.store.results(Call("forget"))) > before, 10)

    async with scene() as one, running(one):
        await _time_out(one)
        answer, _ = await race(
            one,
            Operation(Call("settle", Event.RETRY), retry),
            Operation(Call("forget"), forget),
            is_reversed=is_reversed,
            position=position,
        )
        shown = await one.queue.status(one.job)
        assert (answer, shown.status) in [(200, 200), (404, 404)]
        if answer == 200:
            assert shown["status"] in ("IN_QUEUE", "IN_PROGRESS")
