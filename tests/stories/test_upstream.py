"""`--upstream`: any OpenAI-compatible server in place of vLLM.

Here the upstream is another proxy with its workers.
"""

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import openai
import pytest
import pytest_asyncio
from harness.proxy.server import CHAT, Proxy, chat, frames, serving
from harness.proxy.shared import Line
from harness.tools.waiting import until
from harness.worker.process import worker


@pytest_asyncio.fixture(scope="module")
async def front(line: Line) -> AsyncIterator[Proxy]:
    """Run a proxy whose only worker forwards all calls to the proxy of `line`."""
    async with serving() as proxy, worker(proxy, upstream=line.proxy.url):
        yield proxy


async def test_the_models_are_those_of_the_upstream(front: Proxy) -> None:
    async with front.openai() as client:
        assert [model.id for model in (await client.models.list()).data] == ["scripted"]


async def test_a_stream_passes_through_both_proxies(front: Proxy) -> None:
    async with front.http.post(CHAT, json=chat("far", stream=True, max_tokens=50)) as response:
        events = await frames(response)
    chunks = [json.loads(event.removeprefix(b"data: ")) for event in events[:-1]]
    text = "".join(chunk["choices"][0]["delta"].get("content", "") for chunk in chunks)
    assert text == "".join(f"far {number} " for number in range(50))
    assert events[-1] == b"data: [DONE]"


async def test_an_error_of_the_upstream_is_the_answer(front: Proxy) -> None:
    async with front.openai() as client:
        with pytest.raises(openai.BadRequestError, match="maximum context length"):
            await client.chat.completions.create(**chat(max_tokens=9_999_999))


@pytest.mark.parametrize("stream", [True, False])
async def test_a_client_that_disconnects_frees_the_upstream(
    front: Proxy, line: Line, stream: bool
) -> None:
    call = asyncio.create_task(
        _post(front, chat("leaving", stream=stream, max_tokens=100_000, seed=2_000))
    )
    await until(lambda: _running(line, 1), what="the engine behind it works")
    call.cancel()
    await asyncio.gather(call, return_exceptions=True)
    await until(lambda: _running(line, 0), 1.0, "it is idle again")


async def test_only_the_execution_timeout_ends_a_call_without_output(line: Line) -> None:
    async with (
        serving(execution_timeout=3.0) as proxy,
        worker(proxy, upstream=line.proxy.url, progress_seconds=1) as one,
    ):
        async with proxy.http.post(
            CHAT, json=chat("late", max_tokens=1, fault="head_delay:1600")
        ) as response:
            assert (await response.json())["choices"][0]["message"]["content"] == "late 0 "
        async with proxy.http.post(CHAT, json=chat("never", fault="head_delay:60000")) as response:
            assert (response.status, (await response.json())["error"]["code"]) == (
                504,
                "execution_timeout",
            )
        async with proxy.http.post(CHAT, json=chat("next", max_tokens=1)) as response:
            assert (await response.json())["choices"][0]["message"]["content"] == "next 0 "
        assert one.process.returncode is None


async def _post(proxy: Proxy, request: dict[str, Any]) -> None:
    async with proxy.http.post(CHAT, json=request) as response:
        await response.read()


async def _running(line: Line, wanted: float) -> bool:
    counts = [await one.metric(line.proxy.http, "num_requests_running") for one in line.workers]
    return sum(counts) == wanted
