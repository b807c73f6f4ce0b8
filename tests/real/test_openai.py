"""Real vLLM behind the proxy: responses arrive unchanged, and all features work."""

import asyncio
import json
from typing import Any
from uuid import uuid4

import openai
import pytest
from harness.proxy.server import CHAT
from harness.proxy.shared import Real
from harness.tools.waiting import until
from harness.worker.app_recorder import recorded
from harness.worker.real_vllm import START_SECONDS, ask

pytestmark = pytest.mark.timeout(START_SECONDS)

QUESTION = "What is this?"
# Tokens of an answer that takes about a second or longer.
LONG = 1_900
WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "Get the weather of a city.",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string"}},
            "required": ["city"],
        },
    },
}


REQUESTS: list[tuple[str, dict[str, Any]]] = [
    (CHAT, ask()),
    (CHAT, ask(stream=True)),
    (
        CHAT,
        ask(stream=True, stream_options={"include_usage": True, "continuous_usage_stats": True}),
    ),
    (CHAT, ask(stream=True, n=2, temperature=1.0, seed=7)),
    (CHAT, ask(stream=True, logprobs=True, top_logprobs=3)),
    (CHAT, ask("What is the weather in Paris?", stream=True, tools=[WEATHER])),
    (CHAT, ask("What is 17 + 25?", stream=True)),
    (CHAT, ask(stream=True, max_tokens=3, stop=["serverless"])),
    (CHAT, ask(stream=True, top_k=5, min_p=0.1, an_unknown_field={"x": [1, None]})),
    (CHAT, ask("x" * 20_000, stream=True)),
    (CHAT, ask(messages="hello", stream=True)),
    ("/v1/completions", {"model": "demo", "prompt": "1 2 3", "max_tokens": 8, "stream": True}),
    (
        "/v1/completions",
        {"model": "demo", "prompt": ["1 2 3", "Hello"], "max_tokens": 8, "echo": True},
    ),
]


@pytest.mark.parametrize(("path", "request_"), REQUESTS)
async def test_every_byte_is_the_engines_own(
    real: Real, path: str, request_: dict[str, Any]
) -> None:
    name = f"record-{uuid4()}"
    sent = json.dumps(
        request_ | {"user": name, "note": "ünïcödé \u2028 1e400"}, indent=2, ensure_ascii=False
    ).encode()
    async with real.proxy.http.post(
        path, data=sent, headers={"content-type": "application/json"}
    ) as response:
        received = await response.read()
    assert received
    assert recorded(real.records, name) == (sent, received)


async def test_the_demo_answers_the_same_each_time(real: Real) -> None:
    async with real.proxy.openai() as client:
        answers = [
            (await client.chat.completions.create(**ask(temperature=0))).choices[0].message.content
            for _ in range(3)
        ]
        pieces = [
            piece
            async for piece in await client.chat.completions.create(
                **ask(temperature=0, stream=True)
            )
        ]
    assert answers[0] is not None
    assert answers[0].startswith("vllm-serverless is a serverless endpoint for vLLM")
    assert (
        "".join(piece.choices[0].delta.content or "" for piece in pieces)
        == answers[0]
        == answers[1]
        == answers[2]
    )


async def test_a_tool_is_called(real: Real) -> None:
    async with real.proxy.openai() as client:
        request = ask("What is the weather in Paris?", tools=[WEATHER], temperature=0)
        message = (await client.chat.completions.create(**request)).choices[0].message
        assert message.tool_calls
        [call] = message.tool_calls
        assert isinstance(call, openai.types.chat.ChatCompletionMessageFunctionToolCall)
        assert (call.function.name, json.loads(call.function.arguments)) == (
            "get_weather",
            {"city": "Paris"},
        )
        streamed = ""
        async for piece in await client.chat.completions.create(**request, stream=True):
            for delta in piece.choices[0].delta.tool_calls or []:
                streamed += (delta.function and delta.function.arguments) or ""
    assert json.loads(streamed) == {"city": "Paris"}


async def test_a_thought_stays_apart_from_the_answer(real: Real) -> None:
    async with real.proxy.openai() as client:
        answer = await client.chat.completions.create(**ask("What is 17 + 25?", temperature=0))
    message = answer.choices[0].message
    assert "42" in (message.content or "")
    assert "<think>" not in (message.content or "")
    assert (message.model_extra or {}).get("reasoning")


ENUM_SCHEMA = {"name": "x", "schema": {"enum": ["yes", "no"]}}


@pytest.mark.parametrize(
    "more",
    [
        {"response_format": {"type": "json_schema", "json_schema": ENUM_SCHEMA}},
        {"structured_outputs": {"choice": ['"yes"', '"no"']}},
    ],
    ids=["response_format", "structured_outputs"],
)
async def test_an_answer_has_the_wanted_structure(real: Real, more: dict[str, Any]) -> None:
    async with real.proxy.http.post(CHAT, json=ask(temperature=0, **more)) as response:
        answer = await response.json()
    assert response.status == 200, answer
    assert json.loads(answer["choices"][0]["message"]["content"]) in {"yes", "no"}


async def test_n_stop_and_logprobs_reach_the_engine(real: Real) -> None:
    async with real.proxy.openai() as client:
        answer = await client.chat.completions.create(
            **ask(n=3, temperature=1.0, logprobs=True, top_logprobs=2)
        )
        assert len(answer.choices) == 3
        logprobs = answer.choices[0].logprobs
        assert logprobs is not None
        assert logprobs.content
        assert len(logprobs.content[0].top_logprobs) == 2
        stopped = await client.chat.completions.create(**ask(temperature=0, stop=["endpoint"]))
    assert stopped.choices[0].message.content == "vllm-serverless is a serverless "


@pytest.mark.parametrize("stream", [False, True])
async def test_a_context_that_is_too_long_is_a_400_of_vllms_own(real: Real, stream: bool) -> None:
    async with real.proxy.openai() as client:
        with pytest.raises(openai.BadRequestError, match="2048") as refused:
            await client.chat.completions.create(**ask("word " * 9_000, stream=stream))
    assert refused.value.status_code == 400


async def test_sixteen_streams_over_two_engines(real: Real) -> None:
    questions = [QUESTION, "How do I connect a worker?", "What is 17 + 25?", "hello"] * 4
    async with real.proxy.openai() as client:
        alone = {text: await _read(client, text) for text in set(questions)}
        before = [await _made(real, one) for one in real.workers]
        together = await asyncio.gather(*(_read(client, text) for text in questions))
    assert together == [alone[text] for text in questions]
    after = [await _made(real, one) for one in real.workers]
    assert all(late > early for late, early in zip(after, before, strict=True))


@pytest.mark.parametrize("stream", [True, False])
async def test_the_engine_stops_when_the_client_leaves(real: Real, stream: bool) -> None:
    request = ask("Count to one hundred.", stream=stream, max_tokens=LONG, ignore_eos=True)
    # A pause of this machine can be longer than the whole answer takes.
    made = [await _made_before_leaving(real, request)]
    while made[-1] == LONG and len(made) < 5:
        made.append(await _made_before_leaving(real, request))
    assert 0 < made[-1] < LONG, made
    before = [await _made(real, one) for one in real.workers]
    await _post(real, ask(max_tokens=1))
    assert sum([await _made(real, one) for one in real.workers]) == sum(before) + 1


@pytest.mark.parametrize(
    ("path", "request_", "answer_id"),
    [
        (CHAT, ask(max_tokens=3), "chatcmpl-corr-77"),
        ("/v1/completions", {"model": "demo", "prompt": "1 2", "max_tokens": 3}, "cmpl-corr-77"),
    ],
)
async def test_the_id_of_an_answer_contains_that_of_the_request(
    real: Real, path: str, request_: dict[str, Any], answer_id: str
) -> None:
    """`cases/request-id.http`."""
    headers = {"X-Request-Id": "corr-77"}
    async with real.proxy.http.post(path, json=request_, headers=headers) as response:
        assert (await response.json())["id"] == answer_id
        assert response.headers["x-request-id"] == "corr-77"


async def test_the_engines_own_metrics_stay_on_loopback(real: Real) -> None:
    async with real.proxy.http.get("/metrics") as response:
        assert response.status == 404
    assert await _made(real, real.workers[0]) >= 0


async def _read(client: openai.AsyncOpenAI, text: str) -> str:
    stream = await client.chat.completions.create(**ask(text, stream=True, temperature=0))
    return "".join([piece.choices[0].delta.content or "" async for piece in stream])


async def _post(real: Real, request: dict[str, Any]) -> None:
    async with real.proxy.http.post(CHAT, json=request) as response:
        await response.read()


async def _made(real: Real, one: Any) -> float:
    return float(await one.metric(real.proxy.http, "generation_tokens_total"))


async def _made_before_leaving(real: Real, request: dict[str, Any]) -> float:
    """Leave when the first tokens are made; return the number of all that were made."""
    before = [await _made(real, one) for one in real.workers]

    async def made() -> float:
        return sum([await _made(real, one) for one in real.workers]) - sum(before)

    async def is_working() -> bool:
        return await made() > 0

    call = asyncio.create_task(_post(real, request))
    await until(is_working, what="an engine works")
    call.cancel()
    await asyncio.gather(call, return_exceptions=True)
    await until(lambda: _running(real, 0), 1.0, "both engines are idle")
    return await made()


async def _running(real: Real, wanted: float) -> bool:
    counts = [await one.metric(real.proxy.http, "num_requests_running") for one in real.workers]
    return sum(counts) == wanted
