"""A worker that does not release a stopped job is restarted, unless it was started elsewhere."""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
from harness.data.clock import FakeClock
from harness.proxy.command import processes
from harness.proxy.queue_api import QueueClient, prompt
from harness.proxy.server import Proxy, serving
from harness.runpod.sdk_worker import stock_proxy, stock_worker
from harness.tools.waiting import until
from harness.worker.managed import CommandFor, Provided, own, provided, stock
from harness.worker.process import worker

from proxy.jobs.model import WorkerId
from proxy.service.sweeper import TICK_SECONDS

pytestmark = pytest.mark.slow

GRACE = 0.5
# Maximum time for a process to be killed, on a busy machine.
END_SECONDS = 20.0
DEAF = {
    "openai_route": "/v1/completions",
    "openai_input": {"prompt": "x", "stream": True, "fault": "deaf:1"},
}
DEAD_TO_PINGS = {"RUNPOD_PING_INTERVAL": "600000"}


@dataclass(frozen=True)
class Kind:
    """A kind of worker, with the inputs of an unstoppable, a quick and a slow job."""

    command: Callable[[], CommandFor]
    stuck: Any
    quick: Any
    slow: Any = None


OWN = Kind(lambda: own(2), DEAF, prompt(), prompt(max_tokens=40, seed=100_000))
STOCK = Kind(
    lambda: stock("plain.py", CONCURRENCY="2"), {"do": "deaf"}, {}, {"do": "wait", "seconds": 4}
)
BLOCKING = Kind(lambda: stock("blocking.py"), {"seconds": 600}, {"seconds": 0})


async def begin(queue: QueueClient, running: Provided, kind: Kind) -> str:
    """Submit a job that cannot be stopped, and wait until it has reached that state."""
    job = await queue.run(kind.stuck)
    if kind is OWN:
        await has_output(queue, job)
    else:
        await running.says(f"note began {job}")
    return job


async def has_output(queue: QueueClient, job: str) -> None:
    """Wait until the engine of a job has produced output."""

    async def some() -> bool:
        return bool((await queue.stream(job, "?after=0"))["stream"])

    await until(some, what="its first output")


async def gone(running: Provided, worker_id: str) -> None:
    """Wait until this worker and all its processes have ended."""
    await until(
        lambda: any(one.worker == worker_id for one in running.exits),
        END_SECONDS,
        "the worker has ended",
    )
    await until(lambda: processes(worker_id) == [], what="none of its processes is left")


def is_overdue(proxy: Proxy, worker_id: str) -> bool:
    """Return True if a stopped run has exceeded its grace period by several checks."""
    member = proxy.parts.fleet.get(WorkerId(worker_id))
    assert member is not None
    stopped = [hold.stopped for hold in member.holds.values() if hold.stopped is not None]
    return (
        bool(stopped)
        and asyncio.get_running_loop().time() - min(stopped) > GRACE + 3 * TICK_SECONDS
    )


@pytest.mark.parametrize("kind", [OWN, STOCK, BLOCKING], ids=["own", "stock", "blocking"])
async def test_a_cancelled_job_that_does_not_stop_restarts_its_worker(
    kind: Kind,
) -> None:
    command = kind.command()
    async with stock_proxy(stop_grace=GRACE) as proxy, provided(proxy, command(proxy)) as running:
        queue = QueueClient(proxy)
        first = await running.is_ready()
        job = await begin(queue, running, kind)
        assert (await queue.call("POST", f"cancel/{job}"))["status"] == "CANCELLED"
        await gone(running, first)
        served = await queue.end(await queue.run(kind.quick))
        assert (served["status"], served["retries"]) == ("COMPLETED", 0)
        assert served["workerId"] == running.alive != first
        assert [one.planned for one in running.exits] == [True]
        assert (await queue.status(job))["status"] == "CANCELLED"


@pytest.mark.parametrize("kind", [OWN, STOCK], ids=["own", "stock"])
async def test_a_worker_that_also_runs_another_job_is_ended_after_that_job(kind: Kind) -> None:
    command = kind.command()
    async with stock_proxy(stop_grace=GRACE) as proxy, provided(proxy, command(proxy)) as running:
        queue = QueueClient(proxy)
        first = await running.is_ready()
        job = await begin(queue, running, kind)
        other = await queue.run(kind.slow)
        await until(lambda: _is(queue, other, "IN_PROGRESS"), what="the other one runs")
        await queue.call("POST", f"cancel/{job}")
        await until(lambda: is_overdue(proxy, first), what="the job should have stopped")
        member = proxy.parts.fleet.get(first)
        assert member is not None
        assert not member.is_ending
        assert (await queue.status(other))["status"] == "IN_PROGRESS"
        ended = await queue.end(other)
        assert (ended["status"], ended["workerId"], ended["retries"]) == ("COMPLETED", first, 0)
        await gone(running, first)


async def _is(queue: QueueClient, job: str, status: str) -> bool:
    return bool((await queue.status(job))["status"] == status)


async def test_a_timed_out_job_that_does_not_stop_restarts_its_worker() -> None:
    clock = FakeClock()
    async with serving(clock, stop_grace=GRACE) as proxy, provided(proxy, own(1)(proxy)) as running:
        queue = QueueClient(proxy)
        first = await running.is_ready()
        job = await queue.run(DEAF, policy={"executionTimeout": 5000})
        await has_output(queue, job)
        waiting = await queue.run(prompt())
        clock.pass_time(6)
        await gone(running, first)
        assert (await queue.status(job))["status"] == "TIMED_OUT"
        served = await queue.end(waiting)
        assert (served["status"], served["retries"]) == ("COMPLETED", 0)


async def test_a_worker_started_elsewhere_keeps_running_with_its_slot_occupied() -> None:
    async with serving(stop_grace=GRACE) as proxy, worker(proxy, max_concurrency=1) as one:
        queue = QueueClient(proxy)
        job = await queue.run(DEAF)
        await has_output(queue, job)
        await queue.call("POST", f"cancel/{job}")
        await until(lambda: is_overdue(proxy, one.id), what="the job should have stopped")
        waiting = await queue.status(await queue.run(prompt()))
        assert waiting["status"] == "IN_QUEUE"
        assert one.process.returncode is None
        one.kill()


async def test_a_stock_worker_reports_without_a_ping_that_it_released_all_jobs() -> None:
    async with (
        stock_proxy(poll_hold=50.0, ping_lease=600.0) as proxy,
        stock_worker(proxy, "plain.py", CONCURRENCY="3", **DEAD_TO_PINGS) as one,
    ):
        queue = QueueClient(proxy)
        jobs = [await queue.run({"do": "wait", "seconds": 600}) for _ in range(2)]
        for job in jobs:
            await one.noted("began", job)
        for job in jobs:
            await queue.call("POST", f"cancel/{job}")
        await until(
            lambda: not any(member.holds for member in proxy.parts.fleet),
            15.0,
            "nothing is held any more",
        )
        assert (await queue.end(await queue.run({})))["status"] == "COMPLETED"
