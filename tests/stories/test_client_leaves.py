"""A client disconnect at any time ends the job, and the engine stops generating its tokens."""

import asyncio
from typing import Any

import aiohttp
import pytest
from harness.proxy.server import CHAT, Proxy, chat
from harness.proxy.shared import Line
from harness.tools.waiting import until
from harness.worker.process import worker

LONG: dict[str, Any] = {"max_tokens": 100_000, "seed": 2_000}
GONE_SECONDS = 1.0


async def running(line: Line) -> float:
    return sum([await one.metric(line.proxy.http, "num_requests_running") for one in line.workers])


async def made(line: Line) -> float:
    return sum(
        [await one.metric(line.proxy.http, "generation_tokens_total") for one in line.workers]
    )


async def assert_idle(line: Line) -> None:
    """Check that the engine is idle within a second and generates no tokens after that."""
    await until(lambda: _is(running(line), 0), GONE_SECONDS, "the engine is idle")
    before = await made(line)
    # 150 ms of engine time.
    async with line.proxy.http.post(CHAT, json=chat(max_tokens=3, seed=50_000)) as response:
        assert response.status == 200
    assert await made(line) == before + 3
    assert len(line.proxy.parts.interactive) == 0


async def _is(value: Any, wanted: float) -> bool:
    return bool(await value == wanted)


@pytest.mark.parametrize("request_", [
    {"stream": True, "fault": "head_delay:600000"},
    {"stream": True},
    {"stream": False},
], ids=["before the first token", "in a stream", "not a stream"])  # fmt: skip
async def test_the_engine_stops_within_a_second(line: Line, request_: dict[str, Any]) -> None:
    call = asyncio.create_task(_call(line.proxy, chat("leaving", **LONG | request_)))
    await until(lambda: _is(running(line), 1), what="the engine works")
    call.cancel()
    await asyncio.gather(call, return_exceptions=True)
    await assert_idle(line)


async def test_the_engine_stops_after_the_first_token(line: Line) -> None:
    async with line.proxy.http.post(CHAT, json=chat("leaving", stream=True, **LONG)) as response:
        await response.content.readuntil(b"leaving 0")
        response.close()
    await assert_idle(line)


async def test_the_engine_stops_when_the_openai_client_closes_the_stream(line: Line) -> None:
    async with line.proxy.openai() as client:
        stream = await client.chat.completions.create(**chat("leaving", stream=True, **LONG))
        async for chunk in stream:
            if chunk.choices[0].delta.content:
                break
        await stream.close()
        await assert_idle(line)


async def test_the_engine_stops_after_sixty_simultaneous_disconnects(line: Line) -> None:
    calls = [
        asyncio.create_task(_call(line.proxy, chat(f"c{n}", stream=bool(n % 2), **LONG)))
        for n in range(60)
    ]
    await until(lambda: _is(running(line), 60), what="the engine works on all of them")
    for call in calls:
        call.cancel()
    await asyncio.gather(*calls, return_exceptions=True)
    await assert_idle(line)


async def test_the_job_of_a_client_that_leaves_the_queue_is_never_run(proxy: Proxy) -> None:
    async with worker(proxy, max_concurrency=1) as only:
        async with proxy.http.post(CHAT, json=chat("first", stream=True, **LONG)) as first:
            await first.content.readuntil(b"first 0")
            waiting = asyncio.create_task(_call(proxy, chat("second", stream=True)))
            await until(lambda: len(proxy.parts.interactive) == 2)
            waiting.cancel()
            await asyncio.gather(waiting, return_exceptions=True)
            await until(lambda: len(proxy.parts.interactive) == 1)
        await until(lambda: _is(only.metric(proxy.http, "num_requests_running"), 0))
        assert sum("event=job.started" in text for text in only.lines) == 1


async def _call(proxy: Proxy, request: dict[str, Any]) -> None:
    async with proxy.http.post(
        CHAT, json=request, timeout=aiohttp.ClientTimeout(total=60)
    ) as response:
        await response.read()
