"""Overloads a proxy at a rate that does not depend on the responses.

`python -m harness.load.flood URL RATE SECONDS`: every fourth request is a job of the queue API, the
others are OpenAI calls. Prints `begun`, `ended` (after the last request was sent), and one line of
JSON about the responses when all have arrived.
"""

import asyncio
import json
import sys
import time
from collections import Counter
from dataclasses import dataclass, field

import aiohttp

# The pace is in microseconds.
TOKENS, PACE = 5, 50_000
JOB_SECONDS = TOKENS * PACE / 1e6
ANSWER_SECONDS = 60.0
# One of this number of requests is a job of the queue API.
QUEUED = 4
CHAT = {
    "model": "scripted",
    "messages": [{"role": "user", "content": "flood"}],
    "max_tokens": TOKENS,
    "seed": PACE,
}
RUN = {"input": {"prompt": "flood", "sampling_params": {"max_tokens": TOKENS, "seed": PACE}}}


@dataclass
class Answers:
    """The responses to the requests. Times are in milliseconds."""

    sent: int = 0
    statuses: Counter[str] = field(default_factory=Counter[str])
    # The number of rejections without this header.
    without_retry_after: int = 0
    refusals: list[float] = field(default_factory=list)
    # The longest delay of a request behind its schedule, which the generator itself caused.
    late: float = 0.0
    # The total seconds in which the generator was blocked; rejections are not blamed for them.
    stood: float = 0.0


async def ask(http: aiohttp.ClientSession, number: int, answers: Answers) -> None:
    """Send one request and record its response."""
    path, body = (
        ("/v2/default/run", RUN) if number % QUEUED == 0 else ("/v1/chat/completions", CHAT)
    )
    begun = time.monotonic() - answers.stood
    try:
        async with http.post(path, json=body) as response:
            answers.statuses[str(response.status)] += 1
            if response.status != 200:
                answers.refusals.append((time.monotonic() - answers.stood - begun) * 1000)
                answers.without_retry_after += "retry-after" not in response.headers
            await response.read()
    except aiohttp.ClientError as error:
        answers.statuses[type(error).__name__] += 1


async def flood(url: str, rate: float, seconds: float) -> Answers:
    """Send all requests, each at its scheduled time."""
    answers = Answers()
    timeout = aiohttp.ClientTimeout(total=ANSWER_SECONDS)
    async with (
        aiohttp.ClientSession(
            url, connector=aiohttp.TCPConnector(limit=0), timeout=timeout
        ) as http,
        asyncio.TaskGroup() as group,
    ):
        print("begun", flush=True)
        begun = time.monotonic()
        for number in range(int(rate * seconds)):
            due = begun + number / rate
            if (early := due - time.monotonic()) > 0:
                await asyncio.sleep(early)
                answers.stood += max(0.0, time.monotonic() - due)
            answers.late = max(answers.late, (time.monotonic() - due) * 1000)
            group.create_task(ask(http, number, answers))
            answers.sent += 1
        print("ended", flush=True)
    return answers


if __name__ == "__main__":
    print(json.dumps(vars(asyncio.run(flood(sys.argv[1], float(sys.argv[2]), float(sys.argv[3]))))))
