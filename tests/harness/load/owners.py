"""Owners who send all kinds of requests concurrently and disconnect at random times.

Each checks its responses for the marks of other owners.
"""

import asyncio
import json
import random
import re
from collections import Counter
from collections.abc import Callable, Coroutine
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any
from uuid import uuid4

import aiohttp

from harness.proxy.queue_api import FINAL, prompt
from harness.proxy.server import CHAT, chat

# The maximum time after which a client that disconnects does so.
LEAVE_SECONDS = 0.05
# The share of requests whose client disconnects.
LEAVERS = 0.3
# The share of requests that are followed by a request for a job of another owner.
CURIOUS = 0.2
MARK = re.compile(rb"mark-([0-9a-f]{12})")
OF_ONE_JOB = (
    ("GET", "status"),
    ("GET", "status-sync"),
    ("GET", "stream"),
    ("POST", "cancel"),
    ("POST", "retry"),
)
# Headers that differ between any two responses.
NOISE = {"date", "x-request-id"}
COUNTED = ("x-ratelimit-", "ratelimit")


@dataclass
class Owner:
    """One owner: a key, a mark that is in all its requests, and the jobs that it knows."""

    name: str
    mark: str
    key: str
    chance: random.Random
    jobs: list[str] = field(default_factory=list)


@dataclass
class OwnerLoad:
    """All owners of one proxy, and the findings."""

    http: aiohttp.ClientSession
    owners: list[Owner]
    done: Counter[str] = field(default_factory=Counter)
    # Marks of other owners, and who received them.
    foreign: list[str] = field(default_factory=list)
    # Responses about a job of another owner that reveal its existence.
    unequal: list[str] = field(default_factory=list)
    # The number of bytes that were checked.
    looked_at: int = 0

    async def ask(
        self, owner: Owner, method: str, path: str, **more: Any
    ) -> tuple[int, bytes, dict[str, str]]:
        """Send one request and check every byte of its response, until the client disconnects."""
        headers = more.pop("headers", {}) | {"Authorization": f"Bearer {owner.key}"}
        async with self.http.request(method, path, headers=headers, **more) as response:
            self.look(owner, str(response.headers).encode())
            if job := response.headers.get("x-job-id"):
                owner.jobs.append(job)
            body = b""
            async for data in response.content.iter_any():
                body += data
                # A mark may arrive in two pieces.
                self.look(owner, body[-len(data) - 20 :])
            found = {name.lower(): value for name, value in response.headers.items()}
            return (
                response.status,
                body,
                {name: value for name, value in found.items() if not _is_noise(name)},
            )

    async def run(self, owner: Owner) -> str:
        """Submit a job; return its id."""
        stream = owner.chance.random() < 0.5
        value = prompt(owner.mark, stream=stream, max_tokens=owner.chance.randint(1, 8), seed=1_000)
        status, body, _ = await self.ask(owner, "POST", "/v2/default/run", json={"input": value})
        assert status == 200, body
        job: str = json.loads(body)["id"]
        owner.jobs.append(job)
        return job

    def look(self, owner: Owner, content: bytes) -> None:
        """Check bytes that this owner received."""
        self.looked_at += len(content)
        for found in MARK.findall(content):
            if found.decode() not in owner.mark:
                self.foreign.append(f"{found.decode()} at {owner.name}")


def owners(number: int, seed: int) -> list[Owner]:
    """Return `number` owners."""
    chance = random.Random(seed)
    return [
        Owner(
            f"o{one}",
            f"mark-{chance.randbytes(6).hex()}",
            f"key-{one}-{seed}",
            random.Random(f"{seed} {one}"),
        )
        for one in range(number)
    ]


async def one_request(seen: OwnerLoad, owner: Owner) -> None:
    """Send a random request, and read the response to its end or until the client disconnects."""
    kind, call = owner.chance.choice(list(KINDS.items()))
    asking = asyncio.ensure_future(call(seen, owner))
    if owner.chance.random() < LEAVERS:
        with suppress(TimeoutError):
            async with asyncio.timeout(owner.chance.random() * LEAVE_SECONDS):
                await asking
        kind += ", left" if asking.cancelled() else ""
    else:
        await asking
    seen.done[kind] += 1
    if owner.chance.random() < CURIOUS:
        await _pry(seen, owner)


async def _openai(seen: OwnerLoad, owner: Owner, *, stream: bool) -> None:
    asked = chat(owner.mark, stream=stream, max_tokens=owner.chance.randint(1, 8), seed=2_000)
    status, body, _ = await seen.ask(owner, "POST", CHAT, json=asked)
    assert status == 200, body
    assert owner.mark.encode() in body


async def _runsync(seen: OwnerLoad, owner: Owner) -> None:
    value = prompt(owner.mark, max_tokens=owner.chance.randint(1, 8), seed=2_000)
    status, body, _ = await seen.ask(owner, "POST", "/v2/default/runsync", json={"input": value})
    assert status == 200, body
    owner.jobs.append(json.loads(body)["id"])


async def _run(seen: OwnerLoad, owner: Owner) -> None:
    await _until_final(seen, owner, await seen.run(owner), "status-sync", "?wait=5000")


async def _run_and_stream(seen: OwnerLoad, owner: Owner) -> None:
    await _until_final(seen, owner, await seen.run(owner), "stream", "?wait=1000")


async def _run_and_cancel(seen: OwnerLoad, owner: Owner) -> None:
    job = await seen.run(owner)
    # Any instant of the run.
    await asyncio.sleep(owner.chance.random() * LEAVE_SECONDS)
    status, body, _ = await seen.ask(owner, "POST", f"/v2/default/cancel/{job}")
    assert status == 200, body
    await _until_final(seen, owner, job, "status", "")


async def _until_final(seen: OwnerLoad, owner: Owner, job: str, operation: str, query: str) -> None:
    while True:
        status, body, _ = await seen.ask(owner, "GET", f"/v2/default/{operation}/{job}{query}")
        assert status == 200, body
        if json.loads(body)["status"] in FINAL:
            return


async def _pry(seen: OwnerLoad, owner: Owner) -> None:
    """Check that the responses for a job of another owner reveal nothing.

    They must equal those for a job that never existed, except for the id.
    """
    other = owner.chance.choice(seen.owners)
    if other is owner or not other.jobs:
        return
    job = owner.chance.choice(other.jobs[-5:])
    unknown = (
        str(uuid4()) + job[job.rindex("-") :]
        if not job.startswith("sync-")
        else f"sync-{uuid4()}-u1"
    )
    method, operation = owner.chance.choice(OF_ONE_JOB)
    answers = []
    for asked in (job, unknown):
        answer = await seen.ask(owner, method, f"/v2/default/{operation}/{asked}")
        answers.append((answer[0], answer[1].replace(asked.encode(), b"ID"), answer[2]))
    if answers[0] != answers[1] or answers[0][0] != 404:
        seen.unequal.append(f"{operation} of a job of {other.name} by {owner.name}: {answers}")
    seen.done["asked for another's job"] += 1


def _is_noise(name: str) -> bool:
    return name in NOISE or name.startswith(COUNTED)


Call = Callable[[OwnerLoad, Owner], Coroutine[Any, Any, None]]
KINDS: dict[str, Call] = {
    "OpenAI stream": lambda seen, owner: _openai(seen, owner, stream=True),
    "OpenAI": lambda seen, owner: _openai(seen, owner, stream=False),
    "runsync": _runsync,
    "run": _run,
    "run and stream": _run_and_stream,
    "run and cancel": _run_and_cancel,
}
