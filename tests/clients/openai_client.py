"""Runs OpenAI's client in its own process: reads one call per line, prints one result per call.

It runs in an environment with the tested version and does not import the tests. The argument
`async` selects the asynchronous client.
"""

import asyncio
import json
import sys
from typing import Any

import openai

Result = dict[str, Any]


def call(client: openai.OpenAI, request: Result, result: Result, *, leaves: bool) -> None:
    answer = client.chat.completions.create(**request)
    if not request.get("stream"):
        note_message(result, answer)
        return
    for chunk in answer:
        note_chunk(result, chunk)
        if leaves and result["text"]:
            break
    answer.close()


async def call_async(
    client: openai.AsyncOpenAI, request: Result, result: Result, *, leaves: bool
) -> None:
    answer = await client.chat.completions.create(**request)
    if not request.get("stream"):
        note_message(result, answer)
        return
    async for chunk in answer:
        note_chunk(result, chunk)
        if leaves and result["text"]:
            break
    await answer.close()


def respond(client: openai.OpenAI, request: Result, result: Result, *, has_helper: bool) -> None:
    """Read a response with the client's helper, which checks the order of events, or without it."""
    if has_helper:
        asked = {"model": request["model"], "input": request["input"]}
        with client.responses.stream(**asked) as stream:
            for event in stream:
                note_event(result, event)
        return
    for event in client.responses.create(**request):
        note_event(result, event)


async def respond_async(
    client: openai.AsyncOpenAI, request: Result, result: Result, *, has_helper: bool
) -> None:
    if has_helper:
        asked = {"model": request["model"], "input": request["input"]}
        async with client.responses.stream(**asked) as stream:
            async for event in stream:
                note_event(result, event)
        return
    async for event in await client.responses.create(**request):
        note_event(result, event)


def note_event(result: Result, event: Any) -> None:
    """Note the types of a response's events, its text, and why it failed."""
    result.setdefault("types", [])
    if event.type not in result["types"]:
        result["types"].append(event.type)
    if event.type == "response.output_text.delta":
        result["text"] += event.delta
    elif event.type == "error":
        result["code"] = event.code
    elif event.type == "response.failed":
        result["failed"] = {"id": event.response.id, "code": event.response.error.code}


def note_message(result: Result, answer: Any) -> None:
    [choice] = answer.choices
    result |= {
        "text": choice.message.content,
        "finish": choice.finish_reason,
        "tokens": answer.usage.completion_tokens,
    }


def note_chunk(result: Result, chunk: Any) -> None:
    result["events"] = result.get("events", 0) + 1
    for choice in chunk.choices:
        result["text"] += choice.delta.content or ""
        result["finish"] = choice.finish_reason
    if chunk.usage:
        result["tokens"] = chunk.usage.completion_tokens


def note_error(result: Result, error: openai.OpenAIError) -> None:
    result |= {"error": type(error).__name__, "says": str(error)}
    result |= {"status": getattr(error, "status_code", None), "code": getattr(error, "code", None)}


async def main() -> None:
    is_async = sys.argv[1:] == ["async"]
    # Clients are reused, as in an application: a call must not affect the next one.
    clients: dict[str, Any] = {}
    print(openai.__version__, flush=True)
    for line in sys.stdin:
        asked = json.loads(line)
        url = asked["base_url"]
        if url not in clients:
            make = openai.AsyncOpenAI if is_async else openai.OpenAI
            clients[url] = make(base_url=url, api_key="none", max_retries=0)
        result: Result = {"text": ""}
        helper = asked["helper"]
        request = asked["request"] | {"extra_body": asked["extra"], "timeout": asked["timeout"]}
        try:
            if "input" in request and is_async:
                await respond_async(clients[url], request, result, has_helper=helper)
            elif "input" in request:
                respond(clients[url], request, result, has_helper=helper)
            elif is_async:
                await call_async(clients[url], request, result, leaves=asked["leaves"])
            else:
                call(clients[url], request, result, leaves=asked["leaves"])
        except openai.OpenAIError as error:
            note_error(result, error)
        print(json.dumps(result), flush=True)


asyncio.run(main())
