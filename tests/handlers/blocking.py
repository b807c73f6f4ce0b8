"""A plain handler for the stock SDK: it blocks its process, which polls and answers nothing meanwhile."""

import os
import time
from typing import Any

import runpod


def handler(job: dict[str, Any]) -> Any:
    """One job."""
    print("note began", job["id"], flush=True)
    time.sleep(job["input"]["seconds"])
    return {"pid": os.getpid()}


if __name__ == "__main__":
    runpod.serverless.start({"handler": handler})
