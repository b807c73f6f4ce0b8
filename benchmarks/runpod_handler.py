"""A handler for Runpod's SDK that answers OpenAI calls as the frame pump does: see `pump.py`.

It runs in the environment of the SDK, which does not contain this project.
"""

import asyncio
import time
from collections.abc import AsyncIterator
from typing import Any

import runpod

CONCURRENCY = 4
EVENT = (
    'data: {"id":"chatcmpl-mock0123456789","object":"chat.completion.chunk","created":1700000000,'
    '"model":"mock","choices":[{"index":0,"delta":{"content":"tok @%d "},"logprobs":null,'
    '"finish_reason":null}]}\n\n'
)
MODELS = {"object": "list", "data": [{"id": "mock", "object": "model", "owned_by": "vllm"}]}


async def handler(job: dict[str, Any]) -> AsyncIterator[Any]:
    """Yield `max_tokens` events, `seed` microseconds apart: each one is a post to the proxy."""
    asked = job["input"]
    if asked.get("openai_route") == "/v1/models":
        yield MODELS
        return
    request = asked["openai_input"]
    loop = asyncio.get_running_loop()
    due = loop.time()
    for _ in range(request["max_tokens"]):
        yield EVENT % time.monotonic_ns()
        due += request["seed"] / 1e6
        await asyncio.sleep(due - loop.time())
    yield "data: [DONE]\n\n"


if __name__ == "__main__":
    runpod.serverless.start(
        {
            "handler": handler,
            "return_aggregate_stream": True,
            "concurrency_modifier": lambda _: CONCURRENCY,
        }
    )
