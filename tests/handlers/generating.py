"""A generator handler for the stock SDK: yields as many elements as its input says, and fails where it says so."""

import asyncio
import os
from collections.abc import AsyncIterator
from typing import Any

import runpod


async def handler(job: dict[str, Any]) -> AsyncIterator[Any]:
    """One job."""
    asked = job["input"]
    for number in range(asked["count"]):
        if number == asked.get("raise_at"):
            raise ValueError("no such thing")
        if number == asked.get("fail_at"):
            yield {"error": {"message": "bad", "code": 400}}
        yield {"number": number, "text": "é" * asked.get("size", 1)}
        await asyncio.sleep(asked.get("seconds", 0))


if __name__ == "__main__":
    runpod.serverless.start(
        {"handler": handler, "return_aggregate_stream": bool(os.environ.get("AGGREGATE"))}
    )
