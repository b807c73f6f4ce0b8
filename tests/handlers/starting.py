"""A handler of Runpod's SDK 2 with a start hook, which fails or takes `HOOK_SECONDS`."""

import asyncio
import os
from typing import Any

import runpod


@runpod.serverless.register_prestart_hook
async def load() -> None:
    """Load the model, as it were."""
    print("note loading model", flush=True)
    if os.environ.get("HOOK_FAILS"):
        raise RuntimeError("no CUDA device")
    await asyncio.sleep(float(os.environ.get("HOOK_SECONDS", "0")))


async def handler(job: dict[str, Any]) -> Any:
    """Run one job."""
    return {"echo": job["input"]}


if __name__ == "__main__":
    runpod.serverless.start({"handler": handler})
