"""Idle streams send heartbeats as SSE comments, which clients do not parse as events."""

import time

import pytest
from harness.proxy.server import CHAT, chat, frames, serving
from harness.worker.process import worker

PAUSED = {"max_tokens": 3, "seed": 1_000_000, "stream": True}


async def test_an_idle_stream_sends_comments_between_events() -> None:
    async with serving(heartbeat_silent=0.3) as proxy, worker(proxy), proxy.openai() as client:
        async with proxy.http.post(CHAT, json=chat("slow", **PAUSED)) as response:
            body = await response.read()
        stream = await client.chat.completions.create(**chat("slow", **PAUSED))
        text = "".join([chunk.choices[0].delta.content or "" async for chunk in stream])
    assert text == "slow 0 slow 1 slow 2 "
    assert 3 <= body.count(b": running\n") <= 20
    assert b"\n\n: running\n" in body  # after a complete event
    assert b": running\n\n" not in body  # after two newlines, some clients see an empty event


async def test_a_late_response_head_is_preceded_by_heartbeats() -> None:
    async with serving(heartbeat_silent=0.3) as proxy, worker(proxy):
        async with proxy.http.post(
            CHAT, json=chat("late", stream=True, fault="head_delay:1500")
        ) as response:
            assert response.status == 200
            assert await response.content.readline() == b": running\n"
            assert (await frames(response))[-1] == b"data: [DONE]"


async def test_a_response_without_streaming_has_no_heartbeats() -> None:
    async with serving(heartbeat_silent=0.1, heartbeat_first=0.1) as proxy, worker(proxy):
        async with proxy.http.post(
            CHAT, json=chat("whole", max_tokens=2, seed=500_000)
        ) as response:
            assert (await response.read()).startswith(b"{")


@pytest.mark.torture
@pytest.mark.timeout(120)
async def test_the_default_heartbeat_intervals() -> None:
    """The intervals are 1 s and 5 s in the queue, and 15 s without output once the job runs."""
    async with serving() as proxy:
        began = time.monotonic()
        async with proxy.http.post(
            CHAT, json=chat("gap", stream=True, max_tokens=1, seed=20_000_000)
        ) as response:
            assert await response.content.readline() == b": queued position=1\n"
            assert 0.9 < time.monotonic() - began < 2.0
            assert await response.content.readline() == b":No worker is connected.\n"
            assert await response.content.readline() == b": queued position=1\n"
            assert 5.9 < time.monotonic() - began < 7.0
            async with worker(proxy):
                text = await response.read()
    assert text.count(b": running\n") == 1
    assert b"gap 0 " in text
