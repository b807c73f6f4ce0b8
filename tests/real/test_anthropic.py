"""Anthropic's stock client against vLLM's own messages route."""

import asyncio

import anthropic
import pytest
from harness.proxy.server import Proxy, serving
from harness.proxy.shared import Real
from harness.worker.process import worker
from harness.worker.real_vllm import START_SECONDS

pytestmark = pytest.mark.timeout(START_SECONDS)

MODEL = "demo"
QUESTION: list[anthropic.types.MessageParam] = [{"role": "user", "content": "What is a lease?"}]
# A field of the API for which this client does not have a parameter.
GREEDY = {"temperature": 0}
ANSWER = "A lease is a worker's time-limited right to its jobs."


def stock(proxy: Proxy) -> anthropic.AsyncAnthropic:
    """Return Anthropic's own client with the URL of the proxy."""
    return anthropic.AsyncAnthropic(base_url=proxy.url, api_key="none", max_retries=0)


async def test_a_message_whole_and_as_a_stream(real: Real) -> None:
    async with stock(real.proxy) as client:
        whole = await client.messages.create(
            model=MODEL, max_tokens=64, messages=QUESTION, extra_body=GREEDY
        )
        text, message = await streamed(client)
    [block] = whole.content
    assert isinstance(block, anthropic.types.TextBlock)
    assert block.text.startswith(ANSWER)
    assert text == block.text
    assert (message.stop_reason, message.usage.output_tokens) == (
        whole.stop_reason,
        whole.usage.output_tokens,
    )


async def test_tokens_are_counted(real: Real) -> None:
    async with stock(real.proxy) as client:
        counted = await client.messages.count_tokens(model=MODEL, messages=QUESTION)
        whole = await client.messages.create(model=MODEL, max_tokens=1, messages=QUESTION)
    assert counted.input_tokens == whole.usage.input_tokens > 5


@pytest.mark.parametrize("stream", [False, True])
async def test_errors_are_of_the_clients_own_classes(real: Real, stream: bool) -> None:
    async with stock(real.proxy) as client:
        with pytest.raises(anthropic.NotFoundError, match="unknown-model") as unknown:
            await client.messages.create(
                model="unknown-model", max_tokens=8, messages=QUESTION, stream=stream
            )
        too_long: list[anthropic.types.MessageParam] = [
            {"role": "user", "content": "word " * 9_000}
        ]
        with pytest.raises(anthropic.BadRequestError):
            await client.messages.create(
                model=MODEL, max_tokens=8, messages=too_long, stream=stream
            )
    assert unknown.value.type == "not_found_error"
    assert unknown.value.request_id


async def test_pings_do_not_disturb_a_waiting_client(real: Real) -> None:
    """The client calls a second proxy, whose late worker forwards all requests to the real one."""
    async with serving(heartbeat_first=0.1, heartbeat_queued=0.1) as front, stock(front) as client:
        call = asyncio.create_task(streamed(client))
        async with front.http.post("/v1/messages", json={"model": MODEL, "stream": True}) as beside:
            for _ in range(2):
                assert (
                    await beside.content.readuntil(b"\n\n")
                    == b'event: ping\ndata: {"type": "ping"}\n\n'
                )
            async with worker(front, upstream=real.proxy.url):
                text, _ = await call
                # The second request fails, because it does not contain messages.
                assert b"event: error" in await beside.read()
    assert text.startswith(ANSWER)


async def streamed(client: anthropic.AsyncAnthropic) -> tuple[str, anthropic.types.Message]:
    """Return the streamed text, and the message that the client has built from it."""
    request = client.messages.stream(
        model=MODEL, max_tokens=64, messages=QUESTION, extra_body=GREEDY
    )
    async with request as stream:
        text = "".join([piece async for piece in stream.text_stream])
        return text, await stream.get_final_message()
