"""The other routes of vLLM, of which the proxy knows only the paths."""

import json
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack

import openai
import pytest
import pytest_asyncio
from harness.proxy.server import Proxy, frames, serving
from harness.proxy.shared import Real
from harness.worker.process import worker
from harness.worker.real_vllm import START_SECONDS

pytestmark = pytest.mark.timeout(START_SECONDS)

QUESTION = "What is a lease?"
ANSWER = "A lease is a worker's time-limited right to its jobs."


async def test_responses(real: Real) -> None:
    async with real.proxy.openai() as client:
        whole = await client.responses.create(model="demo", input=QUESTION, temperature=0)
        assert whole.output_text.startswith(ANSWER)
        stream = await client.responses.create(
            model="demo", input=QUESTION, temperature=0, stream=True
        )
        events = [event async for event in stream]
        with pytest.raises(openai.NotFoundError):
            await client.responses.retrieve(whole.id)
        with pytest.raises(openai.NotFoundError):
            await client.responses.cancel(whole.id)
    assert "".join(
        event.delta for event in events if event.type == "response.output_text.delta"
    ).startswith(ANSWER)
    assert events[-1].type == "response.completed"


async def test_messages_in_anthropics_own_events(real: Real) -> None:
    request = {
        "model": "demo",
        "max_tokens": 64,
        "messages": [{"role": "user", "content": QUESTION}],
        "temperature": 0,
    }
    async with real.proxy.http.post("/v1/messages", json=request) as response:
        assert response.status == 200
        assert (await response.json())["content"][0]["text"].startswith(ANSWER)
    async with real.proxy.http.post("/v1/messages", json=request | {"stream": True}) as response:
        events = [event.partition(b"\ndata: ") for event in await frames(response)]
    assert events[0][0] == b"event: message_start"
    assert events[-1][0] == b"event: message_stop"
    deltas = [
        json.loads(data)["delta"]
        for name, _, data in events
        if name == b"event: content_block_delta"
    ]
    assert "".join(delta.get("text", "") for delta in deltas).startswith(ANSWER)
    async with real.proxy.http.post("/v1/messages/count_tokens", json=request) as response:
        assert (await response.json())["input_tokens"] > 5


@pytest.mark.parametrize("base", ["/v1", "/openai", "/v2/default/openai", "/v2/default/openai/v1"])
async def test_tokens_there_and_back(real: Real, base: str) -> None:
    text = "A worker dials in."
    async with real.proxy.http.post(
        f"{base}/tokenize", json={"model": "demo", "prompt": text}
    ) as response:
        tokens = (await response.json())["tokens"]
    async with real.proxy.http.post(
        f"{base}/detokenize", json={"model": "demo", "tokens": tokens}
    ) as response:
        assert (await response.json())["prompt"] == text


async def test_an_unsupported_route_is_rejected_by_the_engine(real: Real) -> None:
    async with real.proxy.http.post(
        "/v1/embeddings", json={"model": "demo", "input": "x"}
    ) as response:
        assert response.status in {400, 404, 501}
        assert "error" in await response.json() or response.status == 404


@pytest_asyncio.fixture(scope="module")
async def pooling() -> AsyncIterator[Proxy]:
    """Start a proxy with a worker that embeds instead of generating."""
    flags = ("--runner", "pooling", "--convert", "embed")
    demo = ("--dtype", "bfloat16", "--max-model-len", "512", "--enforce-eager")
    async with AsyncExitStack() as stack:
        proxy = await stack.enter_async_context(serving())
        settings = {"engine": "vllm", "model": "demo", "log_level": "info", "heartbeat_seconds": 5}
        await stack.enter_async_context(worker(proxy, *flags, *demo, **settings))
        yield proxy


async def test_a_pooling_worker_embeds_scores_and_ranks(pooling: Proxy) -> None:
    async with pooling.openai() as client:
        embedded = await client.embeddings.create(model="demo", input=["a worker", "a lease"])
    assert len(embedded.data) == 2
    assert len(embedded.data[0].embedding) == 256
    for path in ("/v1/pooling", "/openai/pooling"):
        async with pooling.http.post(path, json={"model": "demo", "input": "a worker"}) as response:
            assert response.status == 200, await response.text()
    for path in ("/v1/score", "/openai/score"):
        request = {"model": "demo", "text_1": "a worker", "text_2": ["a worker", "goodbye"]}
        async with pooling.http.post(path, json=request) as response:
            scores = [row["score"] for row in (await response.json())["data"]]
            assert scores[0] > scores[1]
    for path in ("/v1/rerank", "/openai/rerank", "/openai/v2/rerank"):
        request = {"model": "demo", "query": "a worker", "documents": ["goodbye", "a worker"]}
        async with pooling.http.post(path, json=request) as response:
            ranked = (await response.json())["results"]
            assert ranked[0]["document"]["text"] == "a worker"
