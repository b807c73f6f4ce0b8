"""OpenAI's client in a process of its own: it reads calls, a line each, and prints what their caller was told.

It runs in an environment with the version to try, and knows nothing of the tests. The argument `async` takes the
asynchronous client instead.
"""

import asyncio
import json
import sys
from typing import Any

import openai

RateLimitStatus = dict[str, Any]


def call(
    client: openai.OpenAI, request: RateLimitStatus, told: RateLimitStatus, *, leaves: bool
) -> None:
    answer = client.chat.completions.create(**request)
    if not request.get("stream"):
        hear_whole(told, answer)
        return
    for chunk in answer:
        hear(told, chunk)
        if leaves and told["text"]:
            break
    answer.close()


async def call_async(
    client: openai.AsyncOpenAI, request: RateLimitStatus, told: RateLimitStatus, *, leaves: bool
) -> None:
    answer = await client.chat.completions.create(**request)
    if not request.get("stream"):
        hear_whole(told, answer)
        return
    async for chunk in answer:
        hear(told, chunk)
        if leaves and told["text"]:
            break
    await answer.close()


def hear_whole(told: RateLimitStatus, answer: Any) -> None:
    [choice] = answer.choices
    told |= {
        "text": choice.message.content,
        "finish": choice.finish_reason,
        "tokens": answer.usage.completion_tokens,
    }


def hear(told: RateLimitStatus, chunk: Any) -> None:
    told["events"] = told.get("events", 0) + 1
    for choice in chunk.choices:
        told["text"] += choice.delta.content or ""
        told["finish"] = choice.finish_reason
    if chunk.usage:
        told["tokens"] = chunk.usage.completion_tokens


def explain(told: RateLimitStatus, error: openai.OpenAIError) -> None:
    told |= {"error": type(error).__name__, "says": str(error)}
    told |= {"status": getattr(error, "status_code", None), "code": getattr(error, "code", None)}


async def main() -> None:
    is_async = sys.argv[1:] == ["async"]
    clients: dict[
        str, Any
    ] = {}  # kept, as an application would: a call must not spoil the next one
    print(openai.__version__, flush=True)
    for line in sys.stdin:
        asked = json.loads(line)
        url = asked["base_url"]
        if url not in clients:
            make = openai.AsyncOpenAI if is_async else openai.OpenAI
            clients[url] = make(base_url=url, api_key="none", max_retries=0)
        told: RateLimitStatus = {"text": ""}
        request = asked["request"] | {"extra_body": asked["extra"], "timeout": asked["timeout"]}
        try:
            if is_async:
                await call_async(clients[url], request, told, leaves=asked["leaves"])
            else:
                call(clients[url], request, told, leaves=asked["leaves"])
        except openai.OpenAIError as error:
            explain(told, error)
        print(json.dumps(told), flush=True)


asyncio.run(main())
