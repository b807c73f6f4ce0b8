"""A worker dies: another one runs the job, or the client receives an error.

The job is run again only if no output has left the proxy.
"""

import asyncio
import json
import os
import re
import signal
from collections.abc import Mapping
from typing import Any

import openai
import pytest
from harness.proxy.server import CHAT, Proxy, chat, frames, serving
from harness.tools.waiting import until
from harness.worker.process import WorkerProcess, worker
from harness.worker.puppet import puppet

from proxy.wire.frames import Credit, End

pytestmark = pytest.mark.slow

SLOW: dict[str, Any] = {"max_tokens": 100, "seed": 20_000}


def holder(proxy: Proxy, workers: list[WorkerProcess]) -> WorkerProcess | None:
    """Return the worker that holds the only job."""
    ids = {one.id for one in proxy.parts.fleet if one.holds}
    return next((one for one in workers if one.id in ids), None)


@pytest.mark.parametrize("stream", [False, True])
async def test_a_worker_killed_before_output_is_only_a_delay(proxy: Proxy, stream: bool) -> None:
    async with worker(proxy) as one, worker(proxy) as two:
        request = chat("again", stream=stream, fault="head_delay:500")
        call = asyncio.create_task(_text(proxy, request))
        await until(lambda: holder(proxy, [one, two]) is not None)
        victim = holder(proxy, [one, two])
        assert victim is not None
        victim.kill()
        status, text = await call
    assert status == 200
    assert text == "again 0 again 1 again 2 again 3 again 4 "


async def test_a_worker_killed_in_an_answer_without_streaming_is_only_a_delay(proxy: Proxy) -> None:
    """An answer that is not streamed is sent only when it is complete, however long it takes."""
    async with worker(proxy) as one, worker(proxy) as two:
        call = asyncio.create_task(_text(proxy, chat("whole", max_tokens=20, seed=20_000)))
        await until(lambda: holder(proxy, [one, two]) is not None)
        victim = holder(proxy, [one, two])
        assert victim is not None
        await until(lambda: _at_least(victim, proxy, "generation_tokens_total", 5))
        victim.kill()
        status, text = await call
    assert status == 200
    assert text == "".join(f"whole {number} " for number in range(20))


async def test_a_worker_killed_in_a_stream_ends_it_with_an_error(proxy: Proxy) -> None:
    async with worker(proxy) as one, worker(proxy) as two:
        async with proxy.http.post(CHAT, json=chat("half", stream=True, **SLOW)) as response:
            seen = await response.content.readuntil(b"half 3")
            victim = holder(proxy, [one, two])
            assert victim is not None
            victim.kill()
            events = [event for event in (seen + await response.read()).split(b"\n\n") if event]
    assert events[-1] == b"data: [DONE]"
    error = json.loads(events[-2].removeprefix(b"data: "))["error"]
    assert (error["code"], error["type"]) == ("worker_lost", "invalid_request_error")
    text = _text_of(events[:-2])
    # Nothing is duplicated, and nothing is missing.
    assert text == "".join(f"half {number} " for number in range(text.count("half")))
    assert all(
        json.loads(event.removeprefix(b"data: "))["choices"][0]["finish_reason"] is None
        for event in events[:-2]
    )


async def test_the_stock_client_raises_in_the_stream(proxy: Proxy) -> None:
    async with worker(proxy) as one, proxy.openai() as client:
        stream = await client.chat.completions.create(**chat("half", stream=True, **SLOW))
        with pytest.raises(openai.APIError, match="lost"):
            async for chunk in stream:
                if chunk.choices[0].delta.content:
                    one.kill()


async def test_a_job_that_kills_its_workers_is_not_retried_forever(proxy: Proxy) -> None:
    async with worker(proxy), worker(proxy), worker(proxy), worker(proxy) as survivor:
        async with proxy.http.post(CHAT, json=chat("poison", fault="die:0")) as response:
            answer = await response.json()
            assert response.status == 502
            assert response.headers["x-should-retry"] == "false"
        assert answer["error"]["code"] == "gave_up"
        assert "3 runs were lost" in answer["error"]["message"]
        assert proxy.ready == 1
    assert survivor.process.returncode is not None


@pytest.mark.parametrize("stream", [False, True])
async def test_a_job_whose_run_was_lost_and_that_is_not_run_again_says_so(stream: bool) -> None:
    async with serving(queue_timeout=0.6) as proxy, puppet(proxy, slots=1) as one:
        call = asyncio.create_task(_error(proxy, chat(stream=stream)))
        job = await one.job()
        await one.say(
            Credit(0, 0), End(job.job, job.attempt, "lost", "engine_dead", "the engine died")
        )
        status, headers, error = await call
    assert error["code"] == "worker_lost"
    assert re.fullmatch(
        r"1 run of this job was lost, and no worker was free to run it again within \d+ s\.",
        error["message"],
    )
    assert stream or (status, headers["x-should-retry"]) == (502, "false")


async def test_a_hung_worker_is_declared_lost_after_its_lease(proxy: Proxy) -> None:
    async with worker(proxy) as one:
        call = asyncio.create_task(_text(proxy, chat("again", fault="head_delay:300")))
        await until(lambda: holder(proxy, [one]) is not None)
        os.killpg(one.process.pid, signal.SIGSTOP)
        async with worker(proxy):
            status, text = await call
        os.killpg(one.process.pid, signal.SIGCONT)
    assert (status, text[:8]) == (200, "again 0 ")


@pytest.mark.parametrize("stream", [False, True])
async def test_a_dead_engine_is_not_an_answer(stream: bool) -> None:
    """The worker of a dead engine reports it and exits; its job runs on another worker."""
    async with serving(lease=1.0) as proxy, worker(proxy) as one:
        call = asyncio.create_task(_text(proxy, chat("x", stream=stream, fault="engine_dead:0")))
        assert await asyncio.wait_for(one.process.wait(), 10) == 70
        await until(lambda: proxy.ready == 0)
        call.cancel()
        await asyncio.gather(call, return_exceptions=True)
    assert any("engine_dead" in text for text in one.lines)


async def test_an_engine_that_dies_in_a_stream_is_reported_once(proxy: Proxy) -> None:
    async with worker(proxy):
        async with proxy.http.post(
            CHAT, json=chat("half", stream=True, fault="engine_dead:3", **SLOW)
        ) as response:
            events = await frames(response)
    assert events[-1] == b"data: [DONE]"
    assert json.loads(events[-2].removeprefix(b"data: "))["error"]["code"] == "engine_dead"
    assert sum(b'"error"' in event for event in events) == 1


async def test_an_engine_that_hangs_is_ended(proxy: Proxy) -> None:
    async with worker(proxy, progress_seconds=1) as one:
        async with proxy.http.post(
            CHAT, json=chat("half", stream=True, fault="hang:3", **SLOW)
        ) as response:
            events = await frames(response)
        assert await asyncio.wait_for(one.process.wait(), 10) == 70
    assert json.loads(events[-2].removeprefix(b"data: "))["error"]["code"] == "engine_hung"
    assert events[-1] == b"data: [DONE]"


async def test_a_truncated_answer_is_an_error(proxy: Proxy) -> None:
    async with worker(proxy):
        # The first token has to reach the client before the failure reaches the proxy.
        body = chat("half", stream=True, fault="cut:3", seed=50_000)
        async with proxy.http.post(CHAT, json=body) as response:
            events = await frames(response)
        assert json.loads(events[-2].removeprefix(b"data: "))["error"]["code"] == "worker_lost"
        async with proxy.http.post(CHAT, json=chat("half", fault="cut:3")) as response:
            assert (response.status, (await response.json())["error"]["code"]) == (502, "gave_up")


def _text_of(events: list[bytes]) -> str:
    chunks = [json.loads(event.removeprefix(b"data: ")) for event in events]
    return "".join(chunk["choices"][0]["delta"].get("content", "") for chunk in chunks)


async def _text(proxy: Proxy, request: dict[str, Any]) -> tuple[int, str]:
    async with proxy.http.post(CHAT, json=request) as response:
        if not request.get("stream"):
            answer = await response.json()
            return response.status, answer["choices"][0]["message"]["content"]
        return response.status, _text_of((await frames(response))[:-1])


async def _error(
    proxy: Proxy, request: dict[str, Any]
) -> tuple[int, Mapping[str, str], dict[str, Any]]:
    async with proxy.http.post(CHAT, json=request) as response:
        body = await response.read()
        text = (
            body.split(b"data: ")[-2] if request.get("stream") and response.status == 200 else body
        )
        return response.status, response.headers, json.loads(text)["error"]


async def _at_least(one: WorkerProcess, proxy: Proxy, name: str, wanted: float) -> bool:
    return await one.metric(proxy.http, name) >= wanted
