"""A generator handler for the stock SDK.

Its input sets the number of elements, and where it fails.
"""

import asyncio
import os
from collections.abc import AsyncIterator
from typing import Any

import runpod


async def handler(job: dict[str, Any]) -> AsyncIterator[Any]:
    """Run one job."""
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
