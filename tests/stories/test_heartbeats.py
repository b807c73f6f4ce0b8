"""A stream that is silent for long shows that it is alive, and no client takes that for an event."""

import time

import pytest
from harness.proxy.server import CHAT, chat, frames, serving
from harness.worker.process import worker

PAUSED = {"max_tokens": 3, "seed": 1_000_000, "stream": True}


async def test_silence_is_filled_with_comments_between_events() -> None:
    async with serving(heartbeat_silent=0.3) as proxy, worker(proxy), proxy.openai() as client:
        async with proxy.http.post(CHAT, json=chat("slow", **PAUSED)) as response:
            body = await response.read()
        stream = await client.chat.completions.create(**chat("slow", **PAUSED))
        text = "".join([chunk.choices[0].delta.content or "" async for chunk in stream])
    assert text == "slow 0 slow 1 slow 2 "
    assert 3 <= body.count(b": running\n") <= 20
    assert b"\n\n: running\n" in body  # after a whole event
    assert b": running\n\n" not in body  # one newline: with two, some clients see an empty event


async def test_a_head_that_is_long_in_coming_is_bridged() -> None:
    async with serving(heartbeat_silent=0.3) as proxy, worker(proxy):
        async with proxy.http.post(
            CHAT, json=chat("late", stream=True, fault="head_delay:1500")
        ) as response:
            assert response.status == 200
            assert await response.content.readline() == b": running\n"
            assert (await frames(response))[-1] == b"data: [DONE]"


async def test_a_whole_answer_has_no_byte_before_its_outcome() -> None:
    async with serving(heartbeat_silent=0.1, heartbeat_first=0.1) as proxy, worker(proxy):
        async with proxy.http.post(
            CHAT, json=chat("whole", max_tokens=2, seed=500_000)
        ) as response:
            assert (await response.read()).startswith(b"{")


@pytest.mark.torture
@pytest.mark.timeout(120)
async def test_the_true_gaps() -> None:
    """As a user has them: 1 s and 5 s in the queue, 15 s of silence once it runs."""
    async with serving() as proxy:
        began = time.monotonic()
        async with proxy.http.post(
            CHAT, json=chat("gap", stream=True, max_tokens=1, seed=20_000_000)
        ) as response:
            assert await response.content.readline() == b": queued position=1\n"
            assert 0.9 < time.monotonic() - began < 2.0
            assert await response.content.readline() == b": queued position=1\n"
            assert 5.9 < time.monotonic() - began < 7.0
            async with worker(proxy):
                text = await response.read()
    assert text.count(b": running\n") == 1
    assert b"gap 0 " in text
