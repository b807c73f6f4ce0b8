"""Ten times the capacity of the workers.

The workers keep their throughput, excess requests are rejected immediately, and no worker is lost.
"""

import asyncio
import json
import os
import statistics
import sys
from asyncio.subprocess import PIPE
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from typing import Any

import pytest
from harness.load.figures import tell
from harness.load.flood import JOB_SECONDS
from harness.proxy.command import ROOT
from harness.proxy.server import CHAT, Proxy, chat, serving
from harness.tools.waiting import until
from harness.worker.process import worker

from proxy.access.limits import LIMITS
from proxy.jobs.model import Counts, EndpointId

pytestmark = pytest.mark.slow

HERE = EndpointId("default")
WORKERS, SLOTS = 2, 4
CAPACITY = WORKERS * SLOTS / JOB_SECONDS  # jobs per second
TIMES = 10
MAX_QUEUED = 32
NO_LIMITS = [f"{name}=0/0" for name in LIMITS]
SECONDS, SECONDS_OF_TORTURE = 6.0, 120.0
GOODPUT, REFUSAL_MILLIS, RECOVERY_SECONDS, TRIES = 0.95, 20.0, 5.0, 3


@dataclass(frozen=True)
class Measured:
    """The results of one flood."""

    answers: dict[str, Any]
    goodput: float  # fraction of the capacity of the workers
    recovery: float  # seconds until the latency of a call is normal

    @property
    def refusal(self) -> float:
        """The 99th percentile of the latency of rejections, in milliseconds."""
        return statistics.quantiles(self.answers["refusals"], n=100)[98]

    def tell(self) -> None:
        tell("offered load", self.answers["sent"], "", "requests")
        tell(
            "goodput under ten times the load",
            round(self.goodput, 3),
            f">= {GOODPUT}",
            "of capacity",
        )
        tell("refusal p50", round(statistics.median(self.answers["refusals"]), 1), "", "ms")
        tell("refusal p99", round(self.refusal, 1), f"< {REFUSAL_MILLIS:g}", "ms")
        tell("latest request of the generator", round(self.answers["late"], 1), "", "ms")
        tell("back to normal after", round(self.recovery, 2), f"<= {RECOVERY_SECONDS:g}", "s")


@asynccontextmanager
async def overloaded() -> AsyncIterator[Proxy]:
    """Start a proxy with short leases, and workers of known speed."""
    async with AsyncExitStack() as stack:
        proxy = await stack.enter_async_context(
            serving(max_queued=MAX_QUEUED, limit=NO_LIMITS, lease=2.0)
        )
        for _ in range(WORKERS):
            await stack.enter_async_context(
                worker(proxy, environment={"MAX_CONCURRENCY": str(SLOTS)})
            )
        yield proxy


async def flooded(proxy: Proxy, seconds: float) -> Measured:
    """Flood the proxy from a separate process and return the results."""
    loop, before = asyncio.get_running_loop(), {id(one) for one in proxy.parts.fleet}
    path = os.pathsep.join(str(ROOT / name) for name in ("", "tests"))
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "harness.load.flood"),
        *(proxy.url, str(TIMES * CAPACITY), str(seconds)),
        cwd=ROOT, env=os.environ | {"PYTHONPATH": path}, stdout=PIPE, limit=1 << 24,
    )  # fmt: skip
    assert process.stdout is not None
    assert await process.stdout.readline() == b"begun\n"
    await until(lambda: _is_full(proxy), what="the queue is full")
    begun, done = loop.time(), await _counts(proxy)
    assert await process.stdout.readline() == b"ended\n"
    ended, then = loop.time(), await _counts(proxy)
    await until(lambda: _is_normal(proxy), 60, "a call takes no longer than it must")
    recovery = loop.time() - ended
    answers = json.loads(await process.stdout.readline())
    assert await process.wait() == 0
    assert {id(one) for one in proxy.parts.fleet} == before, "a worker was lost"
    last = await _counts(proxy)
    assert (last.failed, last.timed_out, last.cancelled) == (0, 0, 0)
    return Measured(
        answers, (then.completed - done.completed) / (ended - begun) / CAPACITY, recovery
    )


def has_been_honest(answers: dict[str, Any]) -> None:
    """Check that every request was either served or answered with a time to retry."""
    assert set(answers["statuses"]) == {"200", "429"}, answers["statuses"]
    assert sum(answers["statuses"].values()) == answers["sent"]
    assert answers["statuses"]["429"] > answers["sent"] / 2, "else it was no overload"
    assert answers["without_retry_after"] == 0


async def _counts(proxy: Proxy) -> Counts:
    return await proxy.parts.view.counts(HERE)


async def _is_full(proxy: Proxy) -> bool:
    return (await _counts(proxy)).in_queue >= MAX_QUEUED


async def _is_normal(proxy: Proxy) -> bool:
    loop = asyncio.get_running_loop()
    begun = loop.time()
    async with proxy.http.post(CHAT, json=chat(max_tokens=5, seed=10_000)) as response:
        await response.read()
        return response.status == 200 and loop.time() - begun < 0.25


async def test_excess_requests_are_rejected_and_no_worker_is_lost() -> None:
    async with overloaded() as proxy:
        measured = await flooded(proxy, SECONDS)
        measured.tell()
        has_been_honest(measured.answers)


@pytest.mark.torture
@pytest.mark.timeout(600)
async def test_ten_times_the_load_does_not_reduce_goodput() -> None:
    for tries_left in reversed(range(TRIES)):
        async with overloaded() as proxy:
            measured = await flooded(proxy, SECONDS_OF_TORTURE)
        measured.tell()
        has_been_honest(measured.answers)
        is_fast = measured.refusal < REFUSAL_MILLIS and measured.recovery <= RECOVERY_SECONDS
        if measured.goodput >= GOODPUT and is_fast:
            return
        assert tries_left, measured
