"""Large events in streams of stock workers: back-pressure, errors, and closed connections.

Large events pass to a client that keeps up, and the last event decides the meaning of a close.
"""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
import pytest_asyncio
from harness.network.raw_http import request, wire
from harness.proxy.server import CHAT, Proxy
from harness.runpod.raw_worker import Raw
from harness.runpod.sdk_worker import stock_proxy
from harness.tools.waiting import until

from proxy.service.mailbox import EVENT_MAX_BYTES, STREAM_MAX_BYTES
from proxy.wire.flow import LOW_WATERMARK_BYTES

ECHO = 1_094_182
DONE = "data: [DONE]\n\n"
BODY = json.dumps({"model": "m", "stream": True}).encode()
JSON = {"Content-Type": "application/json"}
ASK = request(
    f"POST {CHAT}", "Content-Type: application/json", f"Content-Length: {len(BODY)}", body=BODY
)


@pytest_asyncio.fixture
async def proxy() -> AsyncIterator[Proxy]:
    async with stock_proxy(heartbeat_first=60.0) as running:
        yield running


def event(size: int) -> str:
    """Return an event of this size in bytes, no two parts of which are equal."""
    return ("data: " + "".join(f"{number:08}" for number in range(size // 8 + 1)))[
        : size - 2
    ] + "\n\n"


@asynccontextmanager
async def called(proxy: Proxy) -> AsyncIterator[tuple[Raw, str, "asyncio.Task[bytes]"]]:
    """Yield a worker that has taken a call, and the call's client, which reads without delay."""

    async def read() -> bytes:
        async with proxy.http.post(CHAT, data=BODY, headers=JSON) as response:
            return await response.read()

    async with Raw(proxy) as raw:
        reading = asyncio.create_task(read())
        yield raw, str((await raw.next_job())["id"]), reading


async def status(proxy: Proxy, job: str) -> dict[str, Any]:
    async with proxy.http.get(f"/v2/default/status/{job}") as response:
        found: dict[str, Any] = await response.json()
        return found


@pytest.mark.parametrize(
    ("size", "post"), [(ECHO, 64_000), (ECHO, 2 * ECHO), (20_000_000, 20_000_000)]
)
async def test_a_large_event_arrives_complete(proxy: Proxy, size: int, post: int) -> None:
    data = "data: 1\n\n" + event(size) + DONE
    async with called(proxy) as (raw, job, reading):
        for start in range(0, len(data), post):
            assert await raw.chunk(job, data[start : start + post]) == 200
        assert await raw.done(job, {"output": []}, stream=True) == 200
        assert await reading == data.encode()
    assert (await status(proxy, job))["status"] == "COMPLETED"


async def test_a_large_event_sent_as_an_object_arrives_complete(proxy: Proxy) -> None:
    value = {"text": "x" * 3_000_000}
    async with called(proxy) as (raw, job, reading):
        await raw.chunk(job, [value])
        await raw.done(job, {"output": []}, stream=True)
        assert await reading == f"data: {json.dumps(value)}\n\n{DONE}".encode()


async def test_a_stream_sent_only_as_a_result_arrives_complete(proxy: Proxy) -> None:
    data = [event(700_000) for _ in range(8)] + [DONE]
    async with called(proxy) as (raw, job, reading):
        await raw.done(job, {"output": data}, stream=True)
        assert await reading == "".join(data).encode()


@pytest.mark.parametrize("size", [10, 2 * EVENT_MAX_BYTES])
async def test_a_stream_with_an_error_event_has_failed(proxy: Proxy, size: int) -> None:
    error = 'data: {"error": {"message": "' + "x" * size + '"}}\n\n'
    async with called(proxy) as (raw, job, reading):
        for part in ("data: 1\n\n" + error[:20], error[20:], DONE):
            await raw.chunk(job, part)
        await raw.done(job, {"output": []}, stream=True)
        assert await reading == f"data: 1\n\n{error}{DONE}".encode()
    assert (await status(proxy, job))["status"] == "FAILED"


async def test_little_of_a_large_event_is_buffered_for_a_stalled_reader(proxy: Proxy) -> None:
    async with Raw(proxy) as raw, wire(proxy) as client:
        await client.send(ASK)
        job = str((await raw.next_job())["id"])
        [mailbox] = list(proxy.parts.interactive)
        posting = asyncio.create_task(raw.chunk(job, event(20_000_000)))
        await until(lambda: mailbox.backlog > LOW_WATERMARK_BYTES, what="its reader is behind")
        assert mailbox.backlog <= STREAM_MAX_BYTES
        assert not posting.done()
        await client.close()
        assert await asyncio.wait_for(posting, 20) == 200
        assert (await status(proxy, job))["status"] == "CANCELLED"


async def test_a_stream_beyond_the_buffer_limit_is_aborted(proxy: Proxy) -> None:
    passing = proxy.parts.passing
    with passing.share() as others:
        others.grow(passing.limit)
        async with called(proxy) as (raw, job, reading):
            assert await raw.chunk(job, event(2_000_000)) == 200
            assert b"answer_too_large" in await reading
    assert passing.used == 0


async def test_a_client_that_closes_at_the_end_has_a_completed_job(proxy: Proxy) -> None:
    async with Raw(proxy) as raw:
        async with wire(proxy) as client:
            await client.send(ASK)
            job = str((await raw.next_job())["id"])
            await raw.chunk(job, "data: 1\n\n")
            await raw.chunk(job, DONE)
            # The end waits for the result.
            await raw.done(job, {"output": []}, stream=True)
            await client.heard(DONE.encode())
        assert (await status(proxy, job))["status"] == "COMPLETED"
