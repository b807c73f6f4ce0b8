"""Shutdown on SIGTERM in the proxy and in a worker: reject new jobs, drain, close and exit."""

import asyncio
import json
import signal
from contextlib import AsyncExitStack
from pathlib import Path

import aiohttp
import pytest
from harness.proxy.command import command
from harness.proxy.server import CHAT, Proxy, chat, frames, serving
from harness.tools.waiting import until
from harness.worker.process import worker

pytestmark = pytest.mark.slow


async def test_the_proxy_finishes_running_jobs_and_rejects_queued_ones(tmp_path: Path) -> None:
    scripted = {"WORKER_ENGINE": "scripted", "WORKER_MAX_CONCURRENCY": "1"}
    async with command("up", "--port", "0", "--data-dir", str(tmp_path), **scripted) as up:
        url = (await up.says(r"base URL\s+(http://\S+)/v1")).group(1)
        async with aiohttp.ClientSession(url) as http:
            running = await http.post(
                CHAT, json=chat("runs", stream=True, max_tokens=40, seed=50_000)
            )
            await running.content.readuntil(b"runs 1 ")
            waiting = await http.post(CHAT, json=chat("waits", stream=True))
            await waiting.content.readline()  # its queue position
            up.process.send_signal(signal.SIGTERM)
            refused = (await frames(waiting))[-2]
            assert json.loads(refused.removeprefix(b"data: "))["error"]["code"] == "server_draining"
            async with http.post(CHAT, json=chat("late")) as late:
                assert late.status == 503
                assert late.headers["x-should-retry"] == "true"
                assert (await late.json())["error"]["code"] == "server_draining"
            async with http.get("/readyz") as ready:
                assert ready.status == 503
            rest = await frames(running)
        assert rest[-1] == b"data: [DONE]"
        assert b"runs 39 " in rest[-2]
        assert await asyncio.wait_for(up.process.wait(), 20) == 0


async def test_a_job_that_does_not_finish_in_time_ends_with_an_error() -> None:
    async with AsyncExitStack() as workers:
        async with serving(drain=0.3) as proxy:
            await workers.enter_async_context(worker(proxy))
            response = await proxy.http.post(
                CHAT, json=chat("slow", stream=True, max_tokens=9_999, seed=10_000)
            )
            await response.content.readuntil(b"slow 1 ")
            reading = asyncio.create_task(frames(response))
        events = await reading
    assert json.loads(events[-2].removeprefix(b"data: "))["error"]["code"] == "server_draining"
    assert events[-1] == b"data: [DONE]"


async def test_a_worker_finishes_running_jobs_while_another_takes_over(proxy: Proxy) -> None:
    async with worker(proxy, drain_seconds=30) as one:
        response = await proxy.http.post(
            CHAT, json=chat("runs", stream=True, max_tokens=40, seed=50_000)
        )
        await response.content.readuntil(b"runs 1 ")
        one.process.send_signal(signal.SIGTERM)
        await until(lambda: proxy.ready == 0)
        async with worker(proxy):
            async with proxy.http.post(CHAT, json=chat("new")) as other:
                assert other.status == 200
            rest = await frames(response)
        assert b"runs 39 " in rest[-2]
        assert await asyncio.wait_for(one.process.wait(), 10) == 0


async def test_a_worker_returns_jobs_that_it_cannot_finish(proxy: Proxy) -> None:
    """The job has sent no output, so another worker runs it and the client sees only a delay."""
    async with worker(proxy, drain_seconds=0.3) as one:
        call = asyncio.create_task(_text(proxy, chat("again", fault="head_delay:3000")))
        await until(lambda: any(known.holds for known in proxy.parts.fleet))
        one.process.send_signal(signal.SIGTERM)
        assert await asyncio.wait_for(one.process.wait(), 10) == 0
        async with worker(proxy):
            assert await call == "again 0 again 1 again 2 again 3 again 4 "


async def _text(proxy: Proxy, request: dict[str, object]) -> str:
    async with proxy.http.post(CHAT, json=request) as response:
        assert response.status == 200, await response.text()
        return str((await response.json())["choices"][0]["message"]["content"])
