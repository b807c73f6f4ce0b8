"""A killed proxy loses no acknowledged job: after a restart every job ends exactly once."""

import asyncio
import os
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import aiohttp
import pytest
from harness.proxy.command import Command, command
from harness.proxy.queue_api import QueueClient, long, prompt, said
from harness.tools.ports import free_port
from harness.tools.waiting import until
from harness.worker.process import WorkerProcess, environment, worker_process

pytestmark = pytest.mark.slow

TOKEN = "worker-token-of-this-story"
JOBS = 200
SLOTS = 20


@pytest.fixture
def port() -> int:
    """A free port for two consecutive proxies."""
    return free_port()


@asynccontextmanager
async def proxy(port: int, folder: Path, **more: str) -> AsyncIterator[Command]:
    """Run a proxy process with `folder` as its data directory."""
    variables = {"PROXY_WORKER_TOKEN": TOKEN, "PROXY_LEASE": "3", "PROXY_LIMIT": "run=0 status=0"}
    flags = ("--port", str(port), "--data-dir", str(folder))
    async with command("proxy", *flags, **variables | more) as running:
        await running.says(f"listens on http://127.0.0.1:{port}")
        yield running


@asynccontextmanager
async def client(port: int) -> AsyncIterator[QueueClient]:
    connector = aiohttp.TCPConnector(limit=0)
    async with aiohttp.ClientSession(f"http://127.0.0.1:{port}", connector=connector) as http:
        yield QueueClient(SimpleNamespace(http=http))  # type: ignore[arg-type]


def workers(port: int, **more: Any) -> Any:
    """Run a worker process, which reconnects after a restart of the proxy."""
    variables = environment(
        connect=f"http://127.0.0.1:{port}", token=TOKEN, id="w-1", max_concurrency=SLOTS, **more
    )
    return worker_process(variables=variables, name="w-1")


async def kill(running: Command) -> None:
    os.kill(running.process.pid, signal.SIGKILL)
    await running.process.wait()


async def test_acknowledged_jobs_end_exactly_once(port: int, tmp_path: Path) -> None:
    async with workers(port) as worker, client(port) as queue:
        async with proxy(port, tmp_path) as first:
            await until(lambda: _ready(queue), 20, "the worker is there")
            value = prompt("kept", max_tokens=10, seed=30_000)
            jobs = await asyncio.gather(*(queue.run(value) for _ in range(JOBS)))
            await until(
                lambda: _completed(queue, SLOTS), what="some have ended, some run, some wait"
            )
            await kill(first)
        async with proxy(port, tmp_path) as second:
            ended = await asyncio.gather(*(queue.end(job) for job in jobs))
            assert {answer["status"] for answer in ended} == {"COMPLETED"}
            assert {answer["output"]["output_tokens"] for answer in ended} == {10}
            health = (await queue.call("GET", "health")).body
            assert health["durable"] is True
            assert health["jobs"]["completed"] == JOBS
            assert health["jobs"]["inQueue"] == 0
            assert health["jobs"]["inProgress"] == 0
            # At most the jobs that were running ran again.
            assert await _tokens(worker, queue) <= 10 * (JOBS + SLOTS)
            assert await second.stop(signal.SIGTERM) == 0


@pytest.mark.parametrize(("tokens", "dials"), [(100, 0), (300, 12)], ids=["a moment", "long"])
async def test_a_running_job_survives_a_restart_of_the_proxy(
    port: int, tmp_path: Path, tokens: int, dials: int
) -> None:
    async with workers(port) as worker, client(port) as queue:
        async with proxy(port, tmp_path) as first:
            await until(lambda: _ready(queue), 20, "the worker is there")
            job = await queue.run(prompt("runs", max_tokens=tokens, seed=40_000))
            await until(lambda: _is(queue, job, "IN_PROGRESS"), what="it runs")
            await kill(first)
        # An unbounded exponential back-off would be minutes by then.
        await until(lambda: _failed_dials(worker) >= dials, 60, "the worker has failed to connect")
        async with proxy(port, tmp_path):
            ended = await queue.end(job)
            assert (ended["status"], ended["retries"]) == ("COMPLETED", 0)
            assert ended["output"]["output_tokens"] == tokens
            # The same run has continued.
            assert await _tokens(worker, queue) == tokens


async def test_streaming_runs_continue_after_the_proxy_was_killed(
    port: int, tmp_path: Path
) -> None:
    """The worker sends the output that is not in the store again."""
    tokens = 1_000
    async with workers(port) as worker, client(port) as queue:
        async with proxy(port, tmp_path) as first:
            await until(lambda: _ready(queue), 20, "the worker is there")
            value = prompt("on", stream=True, max_tokens=tokens, seed=4_000)
            jobs = await asyncio.gather(*(queue.run(value) for _ in range(SLOTS)))
            await until(lambda: _has_output(queue, jobs), what="all have output")
            await kill(first)
        async with proxy(port, tmp_path):
            for job in jobs:
                ended = await queue.end(job)
                assert (ended["status"], ended["retries"]) == ("COMPLETED", 0)
                elements = (await queue.stream(job, "?after=0"))["stream"]
                assert said(elements) == "".join(f"on {number} " for number in range(tokens))
            # The same runs have continued.
            assert await _tokens(worker, queue) == SLOTS * tokens


async def test_a_run_lost_in_a_restart_does_not_count_as_a_failure(
    port: int, tmp_path: Path
) -> None:
    async with client(port) as queue:
        async with workers(port) as worker:
            async with proxy(port, tmp_path) as first:
                await until(lambda: _ready(queue), 20, "the worker is there")
                job = await queue.run(prompt("again", max_tokens=20, seed=50_000))
                await until(lambda: _is(queue, job, "IN_PROGRESS"), what="it runs")
                worker.kill()
                await kill(first)
        async with proxy(port, tmp_path):
            await until(lambda: _is(queue, job, "IN_QUEUE"), 10, "the lease has expired")
            async with workers(port):
                ended = await queue.end(job)
            assert (ended["status"], ended["retries"]) == ("COMPLETED", 0)


async def test_queued_jobs_survive_a_drain(port: int, tmp_path: Path) -> None:
    async with client(port) as queue:
        async with proxy(port, tmp_path) as first:
            jobs = [await queue.run(long()) for _ in range(3)]
            assert await first.stop(signal.SIGTERM) == 0
        async with proxy(port, tmp_path):
            assert [(await queue.status(job))["status"] for job in jobs] == ["IN_QUEUE"] * 3


async def test_health_reports_that_a_memory_store_is_not_durable(port: int, tmp_path: Path) -> None:
    async with client(port) as queue, proxy(port, tmp_path, PROXY_STORE="memory:"):
        assert (await queue.call("GET", "health"))["durable"] is False


def _failed_dials(worker: WorkerProcess) -> int:
    return sum("channel.unreachable" in line for line in worker.lines)


async def _ready(queue: QueueClient) -> bool:
    return bool((await queue.call("GET", "health"))["workers"]["ready"])


async def _completed(queue: QueueClient, number: int) -> bool:
    return bool((await queue.call("GET", "health"))["jobs"]["completed"] >= number)


async def _is(queue: QueueClient, job: str, status: str) -> bool:
    return bool((await queue.status(job))["status"] == status)


async def _has_output(queue: QueueClient, jobs: list[str]) -> bool:
    pages = [await queue.stream(job, "?after=0") for job in jobs]
    return all(page["stream"] for page in pages)


async def _tokens(worker: WorkerProcess, queue: QueueClient) -> float:
    return await worker.metric(queue.proxy.http, "generation_tokens_total")
