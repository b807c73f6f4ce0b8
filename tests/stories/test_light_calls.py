"""Calls that never reach the model do not use a slot.

They are answered while all slots are busy, and wait only for each other.
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
import pytest_asyncio
from harness.proxy.server import CHAT, Proxy, chat, serving
from harness.tools.waiting import until
from harness.worker.process import worker

from worker_vllm.runtime import LIGHT_SLOTS

TOKENIZE = "/v1/tokenize"


@pytest_asyncio.fixture
async def narrow() -> AsyncIterator[Proxy]:
    """A proxy with one worker that has one slot."""
    async with serving() as proxy, worker(proxy, max_concurrency=1):
        yield proxy


@asynccontextmanager
async def busy(proxy: Proxy) -> AsyncIterator[None]:
    """Occupy the only slot with an endless stream."""
    async with proxy.http.post(
        CHAT, json=chat("long", stream=True, max_tokens=1_000_000, seed=2_000)
    ) as response:
        await response.content.readuntil(b'"long 0 "')
        yield


async def post(proxy: Proxy, path: str, request: dict[str, Any]) -> int:
    """Make a call and return its status."""
    async with proxy.http.post(path, json=request) as response:
        await response.read()
        return response.status


async def waiting(proxy: Proxy) -> int:
    """Return the number of jobs in the queue."""
    async with proxy.http.get("/health") as response:
        return int((await response.json())["endpoints"]["default"]["jobs"]["inQueue"])


@pytest.mark.parametrize(
    "path", [TOKENIZE, "/v1/detokenize", "/openai/tokenize", "/v1/messages/count_tokens"]
)
async def test_a_light_call_is_answered_while_the_only_slot_is_busy(
    narrow: Proxy, path: str
) -> None:
    request = {
        "model": "scripted",
        "prompt": "a",
        "tokens": [0],
        "messages": [{"role": "user", "content": "a"}],
    }
    async with busy(narrow):
        second = asyncio.create_task(post(narrow, CHAT, chat("next")))
        await until(lambda: _is(waiting(narrow), 1), what="a second chat call waits for the slot")
        for _ in range(5):
            assert await asyncio.wait_for(post(narrow, path, request), 5.0) == 200
        assert not second.done()
    assert await second == 200  # its client left, so the slot is free


async def test_light_calls_beyond_the_limit_of_a_worker_are_queued(narrow: Proxy) -> None:
    endless = {"model": "scripted", "prompt": "a", "fault": "hang"}
    async with busy(narrow):
        held = [asyncio.create_task(post(narrow, TOKENIZE, endless)) for _ in range(LIGHT_SLOTS)]
        await until(
            lambda: held_by_the_worker(narrow) == LIGHT_SLOTS,
            what="the worker has as many as it takes",
        )
        more = [
            asyncio.create_task(post(narrow, TOKENIZE, {"model": "scripted", "prompt": "a"}))
            for _ in range(8)
        ]
        await until(lambda: _is(waiting(narrow), len(more)), what="further ones wait")
        assert not any(call.done() for call in (*held, *more))
        held.pop().cancel()
        # One after the other, because one light slot is free.
        assert await asyncio.gather(*more) == [200] * len(more)
        for call in held:
            call.cancel()
        await asyncio.gather(*held, return_exceptions=True)
        await until(lambda: held_by_the_worker(narrow) == 0, what="the worker has let go of them")


def held_by_the_worker(proxy: Proxy) -> int:
    """Return the number of light jobs that the proxy counts for the worker."""
    return sum(one.light_held for one in proxy.parts.fleet)


async def _is(number: Any, wanted: int) -> bool:
    return bool(await number == wanted)
