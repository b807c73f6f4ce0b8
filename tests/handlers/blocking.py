"""A synchronous handler for the stock SDK.

It blocks its process, which meanwhile neither polls nor responds.
"""

import os
import time
from typing import Any

import runpod


def handler(job: dict[str, Any]) -> Any:
    """Run one job."""
    print("note began", job["id"], flush=True)
    time.sleep(job["input"]["seconds"])
    return {"pid": os.getpid()}


if __name__ == "__main__":
    runpod.serverless.start({"handler": handler})
