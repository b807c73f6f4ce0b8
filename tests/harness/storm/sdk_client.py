"""Runpod's Python client in a storm: reads a plan from standard input, prints JSON lines.

Every second job is read with `stream`, which consumes the output.
"""

import json
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import runpod
from runpod import Endpoint

runpod.api_key = "one"
RETRY_SECONDS = 0.2
THREADS = 8
FINAL = ("COMPLETED", "FAILED", "CANCELLED", "TIMED_OUT")


def insist(call: Any) -> Any:
    """Repeat a call until the proxy answers it: the SDK raises what its HTTP library raises."""
    while True:
        try:
            return call()
        except Exception:  # noqa: BLE001 - of several libraries
            time.sleep(RETRY_SECONDS)


def say(**fields: Any) -> None:
    sys.stdout.write(json.dumps(fields) + "\n")
    sys.stdout.flush()


def ask(number: int, prompt: str, tokens: int, pace: int) -> None:
    """Submit one job and read its answer."""
    streams = number % 2 == 1
    value = {
        "prompt": prompt,
        "sampling_params": {"max_tokens": tokens, "seed": pace},
        "stream": streams,
    }
    job = insist(lambda: Endpoint("default").run(value))
    say(prompt=prompt, job=job.job_id)
    if streams:
        insist(lambda: read(prompt, job))
    while (status := insist(job.status)) not in FINAL:
        time.sleep(RETRY_SECONDS)
    say(prompt=prompt, ends=[status])


def read(prompt: str, job: Any) -> None:
    for piece in job.stream():
        say(prompt=prompt, texts=[piece])


def main() -> None:
    """Carry out the plan."""
    plan = json.load(sys.stdin)
    with ThreadPoolExecutor(THREADS) as threads:
        calls = [
            threads.submit(ask, number, prompt, tokens, plan["pace"])
            for number, (prompt, tokens) in enumerate(plan["requests"])
        ]
        for call in calls:
            call.result()


if __name__ == "__main__":
    main()
