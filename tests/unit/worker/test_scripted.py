import asyncio
import json
from contextlib import aclosing, suppress
from typing import Any

import pytest

from tests.unit.worker.support import DEADLINE, chat
from worker_vllm.asgi import CutShortError, Exchange, Head, Request, fetch
from worker_vllm.engine.base import read_models
from worker_vllm.engine.scripted import ScriptedEngine
from worker_vllm.handler import Answer, RunLostError


def events(body: bytes) -> list[Any]:
    data = [line.removeprefix(b"data: ") for line in body.split(b"\n\n") if line]
    return [json.loads(line) for line in data if line != b"[DONE]"]


def text_of(body: bytes) -> list[str]:
    return [
        event["choices"][0]["delta"]["content"] for event in events(body) if event.get("choices")
    ]


@pytest.fixture
def engine() -> ScriptedEngine:
    return ScriptedEngine(stage=lambda _: None)


async def test_a_stream_follows_the_script_in_the_request(engine: ScriptedEngine) -> None:
    status, body = await fetch(engine.app, chat('my "own" text\n', max_tokens=3))

    assert status == 200
    assert text_of(body) == ["", 'my "own" text\n 0 ', 'my "own" text\n 1 ', 'my "own" text\n 2 ']
    assert body.endswith(b"data: [DONE]\n\n")
    assert [event["choices"][0]["finish_reason"] for event in events(body)] == [
        None,
        None,
        None,
        "length",
    ]
    assert len({event["id"] for event in events(body)}) == 1


async def test_usage_comes_last_if_requested(engine: ScriptedEngine) -> None:
    _, body = await fetch(engine.app, chat(max_tokens=5, stream_options={"include_usage": True}))

    assert events(body)[-1]["usage"]["completion_tokens"] == 5


async def test_completions_and_plain_answers(engine: ScriptedEngine) -> None:
    ask = {"prompt": "p", "max_tokens": 2}
    request = Request("POST", "/v1/completions", "application/json", json.dumps(ask).encode())
    _, completion = await fetch(engine.app, request)
    _, plain = await fetch(engine.app, chat("m", stream=False, max_tokens=2))

    assert json.loads(completion)["choices"][0]["text"] == "p 0 p 1 "
    assert json.loads(plain)["choices"][0]["message"]["content"] == "m 0 m 1 "


async def test_models_are_announced_with_their_cards(engine: ScriptedEngine) -> None:
    (model,) = await read_models(engine)

    assert (model.id, model.base) == ("scripted", True)
    assert json.loads(model.card)["object"] == "model"


@pytest.mark.parametrize(
    "body",
    [
        b"{",
        b"[]",
        b'{"messages": 1}',
        b"{}",
        b'{"messages": [{"role": "user"}], "max_tokens": 9999999}',
    ],
)
async def test_bad_requests_are_rejected_as_by_vllm(engine: ScriptedEngine, body: bytes) -> None:
    status, answer = await fetch(
        engine.app, Request("POST", "/v1/chat/completions", "application/json", body)
    )

    assert status == 400
    assert json.loads(answer)["error"]["type"] == "BadRequestError"


async def test_too_many_tokens_names_the_context_length(engine: ScriptedEngine) -> None:
    _, answer = await fetch(engine.app, chat(max_tokens=10_000_000))

    assert b"context length" in answer


async def test_a_cancelled_stream_stops(engine: ScriptedEngine) -> None:
    async with (
        asyncio.timeout(DEADLINE),
        aclosing(Exchange(engine.app, chat(max_tokens=10**6, seed=1000))) as answer,
    ):
        await anext(answer)
        assert engine.running == 1

    assert engine.running == 0
    assert engine.generation_tokens < 100


async def test_a_stream_without_pace_can_be_cancelled(engine: ScriptedEngine) -> None:
    async with (
        asyncio.timeout(DEADLINE),
        aclosing(Exchange(engine.app, chat(max_tokens=10**6))) as answer,
    ):
        await anext(answer)

    assert engine.running == 0


async def test_fault_cut(engine: ScriptedEngine) -> None:
    pieces: list[Head | bytes] = []
    with suppress(CutShortError):
        async for piece in Exchange(engine.app, chat("m", max_tokens=5, fault="cut:2")):
            pieces.append(piece)  # noqa: PERF401 - the pieces before the exception count

    assert text_of(b"".join(piece for piece in pieces if isinstance(piece, bytes))) == [
        "",
        "m 0 ",
        "m 1 ",
    ]


async def test_fault_error_event(engine: ScriptedEngine) -> None:
    _, body = await fetch(engine.app, chat("m", fault="error_event:1"))

    assert events(body)[-1]["error"]["code"] == 500
    assert body.endswith(b"data: [DONE]\n\n")
    assert not engine.dead


async def test_fault_engine_dead(engine: ScriptedEngine) -> None:
    answer = Answer(engine, chat("m", fault="engine_dead:1"))
    with pytest.raises(RunLostError, match="the engine died"):
        [piece async for piece in answer]

    assert engine.dead
    assert (await fetch(engine.app, Request("GET", "/health")))[0] == 503


async def test_fault_die_kills_the_process() -> None:
    deaths: list[str] = []
    engine = ScriptedEngine(stage=lambda _: None, kill_process=lambda: deaths.append("killed"))

    await fetch(engine.app, chat(fault="die:1"))

    assert deaths == ["killed"]


async def test_fault_status_and_size(engine: ScriptedEngine) -> None:
    status, body = await fetch(engine.app, chat(fault="status:503"))
    assert status == 503
    assert json.loads(body)["error"]["code"] == 503

    _, big = await fetch(engine.app, chat(stream=False, fault="big:100000"))
    assert len(json.loads(big)["choices"][0]["message"]["content"]) == 100_000


async def test_metrics_have_the_format_of_vllm(engine: ScriptedEngine) -> None:
    await fetch(engine.app, chat(max_tokens=7))

    _, body = await fetch(engine.app, Request("GET", "/metrics"))

    assert b'vllm:generation_tokens_total{engine="0",model_name="scripted"} 7.0' in body
    assert b'vllm:num_requests_running{engine="0",model_name="scripted"} 0.0' in body
