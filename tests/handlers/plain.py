"""A handler for the stock SDK that performs the action that its input names."""

import asyncio
import os
import signal
import threading
from contextlib import suppress
from typing import Any

import runpod


def note(*words: str) -> None:
    """Print a note for the test, which reads the output of this process."""
    print("note", *words, flush=True)


async def handler(job: dict[str, Any]) -> Any:
    """Run one job."""
    asked = job["input"]
    match asked.get("do", "echo"):
        case "fail":
            return {"error": asked["error"], "done": 1}
        case "raise":
            raise ValueError("no such thing")
        case "wait":
            return await wait(job)
        case "deaf":
            await never(job)
        case "progress":
            runpod.serverless.progress_update(job, asked["progress"])
            return await wait(job)
        case "late progress":
            threading.Timer(
                asked["seconds"], runpod.serverless.progress_update, (job, {"percent": 50})
            ).start()
            return "done"
        case "no json":
            return {"thing": object()}
        case "nan":
            return {"value": float("nan"), "text": "é"}
        case "refresh":
            return {"refresh_worker": True, "pid": os.getpid()}
        case "die":
            os.kill(os.getpid(), signal.SIGKILL)
        case "configuration":
            return {"s3": job.get("s3Config"), "keys": sorted(job)}
    return {"echo": asked.get("value"), "pid": os.getpid()}


async def never(job: dict[str, Any]) -> None:
    """Run without end, and ignore requests to stop."""
    note("began", job["id"])
    while True:
        with suppress(asyncio.CancelledError):
            await asyncio.sleep(60)


async def wait(job: dict[str, Any]) -> str:
    """Wait until the time is over or the job is stopped."""
    note("began", job["id"])
    try:
        await asyncio.sleep(job["input"]["seconds"])
    except asyncio.CancelledError:
        note("stopped", job["id"])
        raise
    note("ended", job["id"])
    return "waited"


if __name__ == "__main__":
    concurrency = int(os.environ.get("CONCURRENCY", "1"))
    refresh = bool(os.environ.get("REFRESH"))
    runpod.serverless.start(
        {
            "handler": handler,
            "concurrency_modifier": lambda _: concurrency,
            "refresh_worker": refresh,
        }
    )
