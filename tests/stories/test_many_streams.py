"""Two hundred concurrent streams on two workers: complete, never mixed, and balanced."""

import asyncio
import json

import pytest
from harness.proxy.server import CHAT, Proxy, chat, frames
from harness.proxy.shared import Line
from harness.worker.process import WorkerProcess

STREAMS = 200
TOKENS = 40


async def one_stream(proxy: Proxy, number: int) -> str:
    """Read one stream to its end and return its text."""
    async with proxy.http.post(
        CHAT, json=chat(f"s{number}", stream=True, max_tokens=TOKENS, seed=5_000)
    ) as response:
        events = await frames(response)
    assert events[-1] == b"data: [DONE]"
    chunks = [json.loads(event.removeprefix(b"data: ")) for event in events[:-1]]
    assert chunks[-1]["choices"][0]["finish_reason"] == "length"
    return "".join(chunk["choices"][0]["delta"].get("content", "") for chunk in chunks)


async def made(line: Line, one: WorkerProcess) -> float:
    return await one.metric(line.proxy.http, "generation_tokens_total")


@pytest.mark.timeout(60)
async def test_two_hundred_streams_are_complete_and_balanced(line: Line) -> None:
    before = [await made(line, one) for one in line.workers]
    texts = await asyncio.gather(*(one_stream(line.proxy, number) for number in range(STREAMS)))
    for number, text in enumerate(texts):
        assert text == "".join(f"s{number} {index} " for index in range(TOKENS))
    shares = [
        (await made(line, one) - start) / TOKENS
        for one, start in zip(line.workers, before, strict=True)
    ]
    assert sum(shares) == STREAMS
    assert all(90 <= share <= 110 for share in shares), shares
