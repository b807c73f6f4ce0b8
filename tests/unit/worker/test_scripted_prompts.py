"""The scripted engine reads scripts from prompts, calls tools and serves the Responses API."""

import asyncio
import json
from typing import Annotated, Any

import pytest
from openai.types.chat import ChatCompletion, ChatCompletionChunk
from openai.types.responses import Response, ResponseStreamEvent
from pydantic import Field, TypeAdapter

from tests.unit.worker.support import DEADLINE, chat
from worker_vllm.asgi import Exchange, Request, fetch
from worker_vllm.engine.scripted import ScriptedEngine

EVENTS: TypeAdapter[Any] = TypeAdapter(Annotated[ResponseStreamEvent, Field(discriminator="type")])
TOOL = {"name": "shell", "arguments": {"command": "ls"}}


@pytest.fixture
def engine() -> ScriptedEngine:
    return ScriptedEngine(stage=lambda _: None)


def scripted(**script: Any) -> str:
    return f"Do it. <script>{json.dumps(script)}</script>"


def response(given: Any, *, stream: bool = True, **fields: Any) -> Request:
    """Return a request to the Responses API; `given` is its input."""
    body = {"input": given, "stream": stream} | fields
    return Request("POST", "/v1/responses", "application/json", json.dumps(body).encode())


async def chunks(engine: ScriptedEngine, request: Request) -> list[ChatCompletionChunk]:
    _, body = await fetch(engine.app, request)
    *data, last = body.decode().removesuffix("\n\n").split("\n\n")
    assert last == "data: [DONE]"
    return [ChatCompletionChunk.model_validate_json(one.removeprefix("data: ")) for one in data]


async def events(engine: ScriptedEngine, request: Request) -> list[Any]:
    """Return the events of a stream, after a check against the types of OpenAI's client."""
    _, body = await fetch(engine.app, request)
    found = []
    for event in body.decode().removesuffix("\n\n").split("\n\n"):
        name, data = event.split("\ndata: ")
        parsed = EVENTS.validate_json(data)
        assert name == f"event: {parsed.type}"
        found.append(parsed)
    return found


async def test_the_script_in_a_prompt_replaces_the_fields_of_the_request(
    engine: ScriptedEngine,
) -> None:
    prompt = scripted(answer="one two three", max_tokens=3)
    found = await chunks(engine, chat(prompt, max_tokens=500, max_completion_tokens=500))

    pieces = [one.choices[0].delta.content for one in found]
    assert pieces == ["", "one ", "two ", "three"]
    assert found[-1].choices[0].finish_reason == "stop"


async def test_the_last_script_of_a_conversation_counts(engine: ScriptedEngine) -> None:
    messages = [
        {"role": "user", "content": scripted(answer="first")},
        {"role": "assistant", "content": "first"},
        {"role": "user", "content": [{"type": "text", "text": scripted(answer="second")}]},
        {"role": "user", "content": "a reminder without a script"},
    ]
    _, body = await fetch(engine.app, chat(messages=messages, stream=False))

    assert ChatCompletion.model_validate_json(body).choices[0].message.content == "second"


@pytest.mark.parametrize("stream", [True, False])
async def test_a_chat_calls_a_tool_until_it_has_the_result(
    engine: ScriptedEngine, stream: bool
) -> None:
    messages: list[dict[str, Any]] = [
        {"role": "user", "content": scripted(tool=TOOL, answer="done")}
    ]
    if stream:
        [first, last] = await chunks(engine, chat(messages=messages))
        [called] = last.choices[0].delta.tool_calls or []
        assert first.choices[0].delta.role == "assistant"
        finish = last.choices[0].finish_reason
    else:
        _, body = await fetch(engine.app, chat(messages=messages, stream=False))
        [choice] = ChatCompletion.model_validate_json(body).choices
        [called] = choice.message.tool_calls or []
        finish = choice.finish_reason
    assert finish == "tool_calls"
    assert called.function.name == "shell"
    assert json.loads(called.function.arguments) == {"command": "ls"}

    messages.append({"role": "tool", "tool_call_id": called.id, "content": "a file"})
    _, body = await fetch(engine.app, chat(messages=messages, stream=False))
    assert ChatCompletion.model_validate_json(body).choices[0].message.content == "done"


async def test_a_stream_of_the_responses_api(engine: ScriptedEngine) -> None:
    found = await events(engine, response(scripted(answer="one two", max_tokens=2)))

    assert [event.type for event in found] == [
        "response.created",
        "response.in_progress",
        "response.output_item.added",
        "response.content_part.added",
        "response.output_text.delta",
        "response.output_text.delta",
        "response.output_text.done",
        "response.content_part.done",
        "response.output_item.done",
        "response.completed",
    ]
    assert [event.sequence_number for event in found] == list(range(len(found)))
    assert "".join(event.delta for event in found[4:6]) == "one two"
    assert found[-1].response.output_text == "one two"


async def test_a_function_call_of_the_responses_api(engine: ScriptedEngine) -> None:
    items: list[dict[str, Any]] = [
        {"role": "user", "content": [{"type": "input_text", "text": scripted(tool=TOOL)}]}
    ]
    found = await events(engine, response(items))
    item = found[-1].response.output[0]
    assert (item.type, item.name, json.loads(item.arguments)) == (
        "function_call",
        "shell",
        {"command": "ls"},
    )

    items.append({"type": "function_call_output", "call_id": item.call_id, "output": "a file"})
    _, body = await fetch(engine.app, response(items, stream=False))
    assert Response.model_validate_json(body).output[0].type == "message"


async def test_a_prefill_delays_what_follows_the_first_events(engine: ScriptedEngine) -> None:
    answer = Exchange(engine.app, response(scripted(fault="prefill:3600000")))
    async with asyncio.timeout(DEADLINE):
        pieces = [await anext(answer), await anext(answer)]
        assert isinstance(pieces[1], bytes)
        assert pieces[1].startswith(b"event: response.created\n")
        assert engine.running == 1
        await answer.aclose()
    assert engine.running == 0
    assert engine.generation_tokens == 0


async def test_an_error_event_of_the_responses_api(engine: ScriptedEngine) -> None:
    found = await events(engine, response("a b", fault="error_event:1"))

    assert (found[-1].type, found[-1].message) == ("error", "scripted failure")


@pytest.mark.parametrize("body", [{}, {"input": []}, {"input": 1}])
async def test_a_response_without_input_is_rejected(
    engine: ScriptedEngine, body: dict[str, Any]
) -> None:
    request = Request("POST", "/v1/responses", "application/json", json.dumps(body).encode())
    status, answer = await fetch(engine.app, request)

    assert status == 400
    assert "'input'" in json.loads(answer)["error"]["message"]
