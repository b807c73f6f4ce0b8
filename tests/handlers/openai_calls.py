"""OpenAI calls with the output formats of worker-vllm images.

`GENERATION` selects the format: `old`, `parsed` (old, configured to give no raw output) or `new`.
The output depends on the request: `max_tokens` is the number of words, and `user` selects errors.
"""

import asyncio
import json
import os
from collections.abc import AsyncIterator, Iterator
from typing import Any

import runpod

LAST_PIECE = 5
GENERATION = os.environ.get("GENERATION", "new")
REFUSED = {
    "message": "max_tokens is too large",
    "type": "BadRequestError",
    "param": None,
    "code": 400,
}


async def handler(job: dict[str, Any]) -> AsyncIterator[Any]:
    """Run one call."""
    asked = job["input"]["openai_input"]
    match asked.get("user"):
        case "refused":
            yield refusal()
            return
        case "no engine":
            yield {"error": {"message": "vLLM server process is not running; worker is unhealthy"}}
            return
        case "crashed":
            raise RuntimeError("out of luck")
        case "old error":
            yield {
                "object": "error",
                "message": "no such model",
                "type": "NotFoundError",
                "param": None,
                "code": 404,
            }
            return
    if not asked.get("stream"):
        text = "".join(words(asked))
        yield {
            "id": "x",
            "object": "chat.completion",
            "choices": [{"index": 0, "message": {"content": text}}],
        }
        return
    for number, piece in enumerate(pieces(asked)):
        yield piece
        await asyncio.sleep(asked.get("seed", 0) / 1000)
        if asked.get("user") == "breaks" and number == LAST_PIECE:
            yield {"error": {"message": "the engine broke", "type": "worker_error", "code": None}}


def refusal() -> Any:
    """The output for an engine's 400 response."""
    if GENERATION != "new":
        return {"error": REFUSED}
    message = "vLLM returned HTTP 400: " + json.dumps({"error": REFUSED})
    return {"error": {"message": message, "type": "worker_error", "code": None}}


def words(asked: dict[str, Any]) -> Iterator[str]:
    """Yield the words of the model."""
    return (
        f"{asked['messages'][-1]['content']} {number} " for number in range(asked["max_tokens"])
    )


def pieces(asked: dict[str, Any]) -> Iterator[Any]:
    """Yield the stream in the format of the generation."""
    chunks = [
        {
            "id": "x",
            "object": "chat.completion.chunk",
            "choices": [{"index": 0, "delta": {"content": word}}],
        }
        for word in words(asked)
    ]
    if GENERATION == "parsed":
        yield from (chunks[start : start + 2] for start in range(0, len(chunks), 2))
        return
    events = [f"data: {json.dumps(chunk, ensure_ascii=False)}\n\n" for chunk in chunks] + [
        "data: [DONE]\n\n"
    ]
    if GENERATION == "old":
        yield from ("".join(events[start : start + 3]) for start in range(0, len(events), 3))
        return
    text = "".join(events)
    yield from (text[start : start + 37] for start in range(0, len(text), 37))


if __name__ == "__main__":
    runpod.serverless.start(
        {"handler": handler, "return_aggregate_stream": True, "concurrency_modifier": lambda _: 8}
    )
