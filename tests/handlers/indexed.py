"""A handler for the stock SDK that answers the prompt `x` with the tokens `x 0 x 1 ...`."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import runpod


async def handler(job: dict[str, Any]) -> AsyncIterator[Any]:
    """Run one job; `seed` is the time of a token in microseconds."""
    asked = job["input"]
    params = asked["sampling_params"]
    for number in range(params["max_tokens"]):
        yield {"text": [f"{asked['prompt']} {number} "]}
        await asyncio.sleep(params["seed"] / 1e6)


if __name__ == "__main__":
    runpod.serverless.start(
        {
            "handler": handler,
            "return_aggregate_stream": True,
            "concurrency_modifier": lambda _: 4,
        }
    )
