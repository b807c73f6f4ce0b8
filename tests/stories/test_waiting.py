"""Without a free worker the client waits, is notified of it, and gets an error in time."""

import asyncio
import json
import time

import openai
import pytest
from harness.proxy.server import CHAT, Proxy, chat, frames, serving
from harness.tools.waiting import until
from harness.worker.process import worker

pytestmark = pytest.mark.slow


async def test_without_a_worker_the_answer_is_503_in_time() -> None:
    async with serving(queue_timeout=0.5) as proxy:
        began = time.monotonic()
        async with proxy.http.post(CHAT, json=chat()) as response:
            answer = await response.json()
            assert response.status == 503
            assert int(response.headers["retry-after"]) <= 60
            assert response.headers["x-should-retry"] == "true"
        assert answer["error"]["code"] == "no_workers"
        assert 0.4 < time.monotonic() - began < 5.0


async def test_a_queued_stream_receives_its_position_and_then_the_error() -> None:
    async with serving(queue_timeout=2.0) as proxy:
        async with proxy.http.post(CHAT, json=chat(stream=True)) as response:
            assert response.status == 200
            assert response.headers["content-type"].startswith("text/event-stream")
            first = await response.content.readline()
            rest = await response.read()
    assert first == b": queued position=1\n"
    *_, error, done, _ = rest.split(b"\n\n")
    assert json.loads(error.split(b"data: ", 1)[1])["error"]["code"] == "no_workers"
    assert done == b"data: [DONE]"


async def test_the_stock_client_reads_a_stream_that_was_queued(proxy: Proxy) -> None:
    async with proxy.openai() as client:
        call = asyncio.create_task(_read(client, chat("late", stream=True)))
        async with proxy.http.post(CHAT, json=chat("beside", stream=True)) as beside:
            # The first heartbeat shows that both calls wait.
            await beside.content.readline()
            async with worker(proxy):
                assert await call == "late 0 late 1 late 2 late 3 late 4 "
                assert (await frames(beside))[-1] == b"data: [DONE]"


async def test_an_error_after_a_heartbeat_is_an_event(proxy: Proxy) -> None:
    async with proxy.http.post(CHAT, json=chat(stream=True, max_tokens=9_999_999)) as response:
        assert await response.content.readline() == b": queued position=1\n"
        async with worker(proxy):
            events = await frames(response)
    assert len(events) == 2
    assert (
        "maximum context length"
        in json.loads(events[0].removeprefix(b"data: "))["error"]["message"]
    )
    assert events[1] == b"data: [DONE]"


async def test_queued_streams_receive_their_queue_positions(proxy: Proxy) -> None:
    async with worker(proxy, max_concurrency=1):
        async with proxy.http.post(
            CHAT, json=chat("a", stream=True, max_tokens=9_999, seed=1_000)
        ) as first:
            await first.content.readuntil(b"a 0")
            async with proxy.http.post(CHAT, json=chat("b", stream=True)) as second:
                assert await second.content.readline() == b": queued position=1\n"
                async with proxy.http.post(CHAT, json=chat("c", stream=True)) as third:
                    assert await third.content.readline() == b": queued position=2\n"
                    first.close()
                    assert (await frames(second))[-1] == b"data: [DONE]"
                    assert (await frames(third))[-1] == b"data: [DONE]"


async def test_a_client_with_a_short_timeout_gets_the_error_before_it() -> None:
    async with serving(queue_timeout=60.0) as proxy, proxy.openai(timeout=3.0) as client:
        with pytest.raises(openai.InternalServerError) as raised:
            await client.chat.completions.create(**chat())
    assert raised.value.code == "no_workers"


async def test_the_execution_timeout_limits_a_job() -> None:
    async with serving(execution_timeout=0.5) as proxy, worker(proxy) as one:
        async with proxy.http.post(CHAT, json=chat(max_tokens=9_999, seed=10_000)) as response:
            assert (response.status, response.headers["x-should-retry"]) == (504, "false")
            assert (await response.json())["error"]["code"] == "execution_timeout"
        async with proxy.http.post(
            CHAT, json=chat("x", stream=True, max_tokens=9_999, seed=10_000)
        ) as response:
            events = await frames(response)
            assert (
                json.loads(events[-2].removeprefix(b"data: "))["error"]["code"]
                == "execution_timeout"
            )
        await until(lambda: _idle(one, proxy))


async def test_a_full_queue_rejects_calls() -> None:
    async with (
        serving(max_queued=1) as proxy,
        proxy.http.post(CHAT, json=chat(stream=True)) as waiting,
    ):
        assert waiting.status == 200
        async with proxy.http.post(CHAT, json=chat()) as response:
            assert response.status == 429
            assert response.headers["retry-after"] == "5"
            assert (await response.json())["error"]["code"] == "queue_full"


async def _read(client: openai.AsyncOpenAI, request: dict[str, object]) -> str:
    stream = await client.chat.completions.create(**request)  # type: ignore[call-overload]
    return "".join([chunk.choices[0].delta.content or "" async for chunk in stream])


async def _idle(one: object, proxy: Proxy) -> bool:
    return not any(worker.holds for worker in proxy.parts.fleet)
