"""OpenAI calls over stock workers.

The output of every generation of worker-vllm is converted to the answer of its engine.
"""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from typing import Any

import aiohttp
import openai
import pytest
import pytest_asyncio
from harness.data.jobs import HERE
from harness.proxy.server import CHAT, Proxy, chat, frames
from harness.runpod.sdk_worker import SDKS, stock_proxy, stock_worker
from harness.tools.environments import python
from harness.tools.waiting import until
from harness.worker.process import environment, worker, worker_process
from harness.worker.transcription_server import speech

from proxy.access.keys import ANONYMOUS
from proxy.cli.stock_worker import environment as stock_environment
from proxy.jobs.model import JobId

GENERATIONS = ["old", "parsed", "new"]


@pytest_asyncio.fixture(scope="module", params=SDKS)
async def proxy(request: pytest.FixtureRequest) -> AsyncIterator[Proxy]:
    """Run a proxy with one worker of each generation, each on the endpoint of that name."""
    async with AsyncExitStack() as stack:
        proxy = await stack.enter_async_context(stock_proxy(endpoint=GENERATIONS))
        starting = [
            stock_worker(proxy, "openai_calls.py", one, sdk=request.param, GENERATION=one)
            for one in GENERATIONS
        ]
        await asyncio.gather(*(stack.enter_async_context(one) for one in starting))
        yield proxy


def asking(proxy: Proxy, endpoint: str) -> openai.AsyncOpenAI:
    return proxy.openai(base_url=f"{proxy.url}/v2/{endpoint}/openai/v1")


def ask(text: str = "é!", **more: Any) -> Any:
    return {"model": "any", "messages": [{"role": "user", "content": text}], "max_tokens": 5} | more


async def post(proxy: Proxy, endpoint: str, body: Any) -> tuple[int, Any]:
    async with proxy.http.post(f"/v2/{endpoint}/openai{CHAT}", json=body) as response:
        return response.status, await response.json()


@pytest.mark.parametrize("endpoint", GENERATIONS)
async def test_a_whole_answer(proxy: Proxy, endpoint: str) -> None:
    async with asking(proxy, endpoint) as client:
        answer = await client.chat.completions.create(**ask())
    assert answer.choices[0].message.content == "é! 0 é! 1 é! 2 é! 3 é! 4 "


@pytest.mark.parametrize("endpoint", GENERATIONS)
async def test_a_stream(proxy: Proxy, endpoint: str) -> None:
    async with asking(proxy, endpoint) as client:
        stream = await client.chat.completions.create(**ask("日本🙂", stream=True, max_tokens=50))
        words = [chunk.choices[0].delta.content or "" async for chunk in stream]
    assert words == [f"日本🙂 {number} " for number in range(50)]


@pytest.mark.parametrize("endpoint", GENERATIONS)
async def test_every_write_of_a_stream_has_complete_events_and_the_last_is_done(
    proxy: Proxy, endpoint: str
) -> None:
    body = ask(stream=True, seed=100)
    async with proxy.http.post(f"/v2/{endpoint}/openai{CHAT}", json=body) as response:
        assert response.content_type == "text/event-stream"
        pieces = [piece async for piece, _ in response.content.iter_chunks()]
    events = [piece for piece in pieces if piece]
    assert all(piece.startswith(b"data: ") and piece.endswith(b"\n\n") for piece in events)
    assert events[-1].endswith(b"data: [DONE]\n\n")
    assert b"".join(events).count(b"[DONE]") == 1


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize("endpoint", GENERATIONS)
async def test_the_engines_error_has_its_own_status(
    proxy: Proxy, endpoint: str, stream: bool
) -> None:
    async with asking(proxy, endpoint) as client:
        with pytest.raises(openai.BadRequestError) as caught:
            await client.chat.completions.create(**ask(user="refused", stream=stream))
    assert caught.value.body == {
        "message": "max_tokens is too large", "type": "BadRequestError", "param": None, "code": 400
    }  # fmt: skip


@pytest.mark.parametrize("stream", [True, False])
async def test_an_error_sent_as_an_output_is_an_error(proxy: Proxy, stream: bool) -> None:
    status, body = await post(proxy, "old", ask(user="old error", stream=stream))
    assert (status, body["error"]["message"], body["error"]["code"]) == (404, "no such model", 404)


async def test_a_crash_of_the_handler_is_a_500_that_is_not_retried(proxy: Proxy) -> None:
    async with proxy.http.post(f"/v2/new/openai{CHAT}", json=ask(user="crashed")) as response:
        assert (response.status, response.headers["x-should-retry"]) == (500, "false")
        assert (await response.json())["error"]["message"] == "out of luck"


@pytest.mark.parametrize("endpoint", GENERATIONS)
async def test_a_stream_that_breaks_ends_with_an_error_event(proxy: Proxy, endpoint: str) -> None:
    breaking = ask(user="breaks", stream=True, max_tokens=30)
    async with proxy.http.post(f"/v2/{endpoint}/openai{CHAT}", json=breaking) as response:
        assert response.status == 200
        *_, error, done = await frames(response)
    assert b"the engine broke" in error
    assert done == b"data: [DONE]"


async def test_a_form_is_rejected_by_a_stock_worker(proxy: Proxy) -> None:
    form = aiohttp.FormData({"model": "any"})
    form.add_field("file", b"sound", filename="a.wav")
    async with proxy.http.post("/v2/new/openai/v1/audio/transcriptions", data=form) as response:
        assert response.status == 415, await response.text()
        assert "only JSON requests" in (await response.json())["error"]["message"]


async def test_a_light_call_occupies_a_slot_like_any_other(proxy: Proxy) -> None:
    async with proxy.http.post("/v2/new/openai/v1/messages/count_tokens", json=ask()) as response:
        assert response.status == 200


async def test_a_client_that_disconnects_stops_its_job(proxy: Proxy) -> None:
    async with proxy.http.post(
        f"/v2/new/openai{CHAT}", json=ask(stream=True, max_tokens=10_000, seed=50)
    ) as response:
        await response.content.readline()
        worker_of = next(one for one in proxy.parts.fleet if one.endpoint == "new")
        assert worker_of.holds
    await until(lambda: not worker_of.holds, 10, "the run has been released")


async def test_a_worker_without_its_engine_receives_no_further_jobs() -> None:
    async with stock_proxy(queue_timeout=3.0) as own, stock_worker(own, "openai_calls.py"):
        status, body = await post(own, "default", ask(user="no engine"))
        assert (status, body["error"]["code"]) == (502, "worker_lost")
        async with own.http.get("/v2/default/health") as health:
            assert (await health.json())["workers"] == {
                "idle": 0, "initializing": 0, "ready": 0,
                "running": 0, "throttled": 0, "unhealthy": 1,
            }  # fmt: skip


async def test_own_and_stock_workers_share_the_load_and_answer_identically() -> None:
    """The stock worker runs our worker under the real SDK, so that both have the same engine."""
    async with stock_proxy() as proxy, worker(proxy, max_concurrency=4) as own:
        variables = stock_environment(
            proxy.url, "default", proxy.parts.token, "pod-1", ping_millis=1000
        )
        under_sdk = environment(environment=variables, max_concurrency=4)
        async with worker_process(variables=under_sdk, python=python(".venv-sdk")):
            await until(lambda: proxy.ready == 2, 60, "both are here")
            seen: set[str] = set()

            async def one(number: int) -> list[bytes]:
                body = chat("same", stream=number % 2 == 0, max_tokens=20, seed=50_000)
                async with proxy.http.post(CHAT, json=body) as response:
                    assert response.status == 200, await response.text()
                    job_id = JobId(response.headers["x-job-id"])
                    job = proxy.parts.interactive.get(HERE, ANONYMOUS.owner, job_id)
                    seen.add(str(job.worker if job else None))
                    return await frames(response)

            answers = await asyncio.gather(*(one(number) for number in range(8)))
    assert seen == {own.id, "pod-1"}
    streamed = [[said(event) for event in answer[:-1]] for answer in answers[::2]]
    assert all(words == streamed[0] for words in streamed)
    assert {said(answer[0]) for answer in answers[1::2]} == {"".join(streamed[0])}


async def test_a_form_is_routed_to_the_worker_that_accepts_it() -> None:
    async with (
        speech("any") as server,
        stock_proxy() as proxy,
        stock_worker(proxy, "openai_calls.py"),
    ):
        async with worker(proxy, upstream=server.url):

            async def one() -> int:
                form = aiohttp.FormData({"model": "any"})
                form.add_field("file", b"sound", filename="a.wav")
                async with proxy.http.post("/v1/audio/transcriptions", data=form) as response:
                    return response.status

            assert await asyncio.gather(*(one() for _ in range(6))) == [200] * 6


def said(event: bytes) -> str:
    """Return the text of an event or of a complete answer."""
    choice = json.loads(event.removeprefix(b"data: "))["choices"][0]
    return str(choice.get("delta", choice.get("message")).get("content") or "")
