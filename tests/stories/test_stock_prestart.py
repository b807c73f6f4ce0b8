"""Workers with Runpod's SDK 2 whose start fails or is cancelled: their events are not results."""

import asyncio
import json
from typing import Any

import pytest
from harness.data.jobs import HERE
from harness.proxy.queue_api import QueueClient
from harness.proxy.server import CHAT, Proxy, chat
from harness.runpod.raw_worker import Raw
from harness.runpod.sdk_worker import SDK2, stock_proxy, stock_worker
from harness.tools.waiting import until

from proxy.jobs.model import JobId

EVENT = {
    "event": "prestart_failed",
    "error_type": "RuntimeError",
    "error_message": "no CUDA device",
    "error_traceback": "Traceback ...",
    "worker_id": "pod-1",
    "runpod_version": "2.0.0rc2",
    "hook": "load",
}
REASON = "prestart failed in load: RuntimeError: no CUDA device"


def error(**changed: Any) -> dict[str, str]:
    """Return the result that the SDK posts."""
    return {"error": json.dumps(EVENT | changed)}


async def test_a_failed_start_costs_its_worker_and_not_the_job(proxy: Proxy) -> None:
    queue = QueueClient(proxy)
    job = await queue.run({"x": 1})
    async with Raw(proxy, "crashing") as crashing, Raw(proxy, "healthy") as healthy:
        assert (await crashing.next_job())["id"] == job
        await crashing.done(job, error())
        async with proxy.http.get(
            f"/v2/default/job-take/{crashing.name}?job_in_progress=0",
            headers={"Authorization": proxy.parts.token},
        ) as response:
            assert response.status == 429, "it gets no further job"
        await until(lambda: _is(queue, job, "IN_QUEUE"))
        shown = await queue.status(job)
        assert shown["retries"] == 1
        assert shown["reason"] == f"No worker is connected. Last failure: crashing: {REASON}."
        health = await queue.call("GET", "health")
        assert health["workers"]["unhealthy"] == 1
        assert health["unhealthy"] == [f"crashing: {REASON}"]
        assert (await healthy.next_job())["id"] == job
        await healthy.done(job, {"output": 1})
        ended = await queue.end(job)
        assert (ended["status"], ended["output"], ended["retries"]) == ("COMPLETED", 1, 1)


async def test_a_job_fails_after_three_failed_starts(proxy: Proxy) -> None:
    queue = QueueClient(proxy)
    job = await queue.run({"x": 1})
    for number in range(3):
        async with Raw(proxy, f"pod-{number}") as one:
            await one.next_job()
            await one.done(job, error())
    ended = await queue.end(job)
    assert ended["status"] == "FAILED"
    assert "3 runs were lost" in ended["error"]
    assert REASON in ended["error"]


async def test_an_openai_call_survives_failed_starts(proxy: Proxy) -> None:
    async with Raw(proxy, "crashing") as crashing, Raw(proxy, "healthy") as healthy:
        calling = asyncio.create_task(_call(proxy))
        await crashing.done((await crashing.next_job())["id"], error())
        await healthy.done((await healthy.next_job())["id"], {"output": {"id": "chatcmpl-1"}})
        assert await calling == (200, {"id": "chatcmpl-1"})


async def _call(proxy: Proxy) -> tuple[int, Any]:
    async with proxy.http.post(CHAT, json=chat()) as response:
        return response.status, await response.json()


async def test_a_cancelled_start_returns_the_job_uncounted(proxy: Proxy) -> None:
    queue = QueueClient(proxy)
    job = await queue.run({"x": 1})
    async with Raw(proxy, "leaving") as leaving, Raw(proxy, "other") as other:
        await leaving.next_job()
        await leaving.done(job, error(event="prestart_cancelled"))
        assert await leaving.take() is None, "it gets no job while it shuts down"
        assert (await other.next_job())["id"] == job
        await other.done(job, {"output": 1})
        ended = await queue.end(job)
        assert (ended["status"], ended["retries"]) == ("COMPLETED", 0)


@pytest.mark.parametrize(
    "posted",
    [
        {"error": "prestart_failed"},
        {"error": json.dumps({"event": "prestart_failed"})},
        {"error": json.dumps({"event": "prestart_other", "worker_id": "x"})},
        {"error": {"event": "prestart_failed", "worker_id": "x"}},
        {"error": 'x "prestart_failed"'},
    ],
)
async def test_other_errors_are_results(proxy: Proxy, posted: dict[str, Any]) -> None:
    queue = QueueClient(proxy)
    job = await queue.run({"x": 1})
    async with Raw(proxy) as one:
        await one.next_job()
        await one.done(job, posted)
        assert (await queue.end(job))["status"] == "FAILED"


@pytest.mark.slow
async def test_the_sdk_posts_these_events() -> None:
    async with stock_proxy(execution_timeout=60.0) as proxy:
        queue = QueueClient(proxy)
        job = await queue.run({"x": 1})
        async with stock_worker(
            proxy, "starting.py", sdk=SDK2, wait=False, pod="slow", HOOK_SECONDS="60"
        ) as slow:
            await until(lambda: _has(proxy, "slow", job), 20, "it has the job, while it loads")
            await slow.stop()
            await until(lambda: _is(queue, job, "IN_QUEUE"))
            assert (await queue.status(job))["retries"] == 0
        async with stock_worker(
            proxy, "starting.py", sdk=SDK2, wait=False, pod="crashing", HOOK_FAILS="1"
        ) as crashing:
            await until(lambda: crashing.process.returncode == 1, 30, "its process has ended")
            await until(lambda: _is(queue, job, "IN_QUEUE"))
            await until(lambda: not list(proxy.parts.fleet), what="both workers are gone")
            shown = await queue.status(job)
            assert shown["retries"] == 1
            assert shown["reason"].endswith(f"crashing: {REASON}.")
        async with stock_worker(proxy, "starting.py", sdk=SDK2):
            assert (await queue.end(job))["output"] == {"echo": {"x": 1}}


def _has(proxy: Proxy, pod: str, job: str) -> bool:
    """Return True if a ping of the worker has listed the job."""
    worker = proxy.parts.registry.find(HERE, pod)
    run = worker and worker.tracked.runs.get(JobId(job))
    return run is not None and run.has_arrived


async def _is(queue: QueueClient, job: str, status: str) -> bool:
    return bool((await queue.status(job))["status"] == status)
