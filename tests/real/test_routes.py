"""The other routes of vLLM, through the proxy: nothing about them is known here but their names."""

import json

import openai
import pytest
from harness.proxy.server import frames
from harness.proxy.shared import Real
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


@pytest.mark.parametrize("path", ["/v1/embeddings", "/pooling", "/v2/embed", "/classify"])
async def test_what_the_model_cannot_do_is_an_error_object(real: Real, path: str) -> None:
    """The worker has announced the routes of its engine."""
    async with real.proxy.http.post(path, json={"model": "demo", "input": "x"}) as response:
        error = (await response.json())["error"]
    assert (response.status, error["code"]) == (404, "route_not_served")
    assert f"The model `demo` does not support {path}." in error["message"]
    assert "/v1/chat/completions, " in error["message"]


async def test_a_batch_of_conversations(real: Real) -> None:
    conversation = [{"role": "user", "content": QUESTION}]
    asked = {"model": "", "messages": [conversation, conversation], "temperature": 0}
    async with real.proxy.http.post("/chat/completions/batch", json=asked) as response:
        found = await response.json()
    assert found["model"] == "demo"
    assert [choice["index"] for choice in found["choices"]] == [0, 1]
    assert all(choice["message"]["content"].startswith(ANSWER) for choice in found["choices"])
