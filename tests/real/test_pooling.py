"""A worker whose vLLM embeds, scores and ranks instead of generating."""

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack

import pytest
import pytest_asyncio
from harness.proxy.server import Proxy, serving
from harness.worker.process import worker
from harness.worker.real_vllm import START_SECONDS

pytestmark = pytest.mark.timeout(START_SECONDS)


@pytest_asyncio.fixture(scope="module")
async def pooling() -> AsyncIterator[Proxy]:
    """A line whose worker embeds instead of generating."""
    flags = ("--runner", "pooling", "--convert", "embed")
    demo = ("--dtype", "bfloat16", "--max-model-len", "512", "--enforce-eager")
    async with AsyncExitStack() as stack:
        proxy = await stack.enter_async_context(serving())
        variables = {"engine": "vllm", "model": "demo", "log_level": "info", "heartbeat_seconds": 5}
        await stack.enter_async_context(worker(proxy, *flags, *demo, **variables))
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
    request = {"model": "demo", "texts": ["a worker"], "embedding_types": ["float"]}
    for path in ("/v2/embed", "/openai/v2/embed"):
        async with pooling.http.post(path, json=request) as response:
            assert len((await response.json())["embeddings"]["float"][0]) == 256
    for path in ("/v1/classify", "/v1/chat/completions", "/responses"):
        async with pooling.http.post(path, json={"model": "demo", "input": "x"}) as response:
            assert (await response.json())["error"]["code"] == "route_not_served"
