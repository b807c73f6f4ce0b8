"""Soak test: minutes of mixed load at 30 requests per second leave no growth in the proxy."""

import asyncio
import json
import os
import random
import signal
import sys
from asyncio.subprocess import PIPE, Process
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean

import aiohttp
import pytest
from harness.load.figures import tell
from harness.load.owners import Owner, OwnerLoad, one_request, owners
from harness.load.slope import slope
from harness.network.webhook_receiver import Receiver, receiver
from harness.proxy.command import ROOT
from harness.proxy.memory_process import TABLES
from harness.proxy.queue_api import FINAL, prompt
from harness.proxy.server import CHAT, chat
from harness.worker.process import environment, worker_process

from proxy.access.limits import LIMITS

MINUTES = float(os.environ.get("MINUTES") or 15)
# Share of the time that is not measured: caches fill, and the first jobs expire.
WARM = 0.5
# Requests per second.
RATE = 30.0
OWNERS = 8
# Interval after which a worker is killed and another one connects.
REBIRTH_SECONDS = 15.0
# Maximum growth of memory, in bytes per hour.
GROWTH_AN_HOUR = 1024 * 1024
# Maximum growth of a table from one half of the measured time to the other: a share, and a number.
TABLE_GROWTH = 1.1
TABLE_NOISE = 3
# All Python objects that the collector knows, and all small blocks of memory.
COUNTS = ("objects", "blocks")
# Maximum growth of both. In 15 minutes, half a block for each request exceeds it.
COUNT_GROWTH = 1.01
# Maximum share of all requests that may be disturbed.
DISTURBED = 0.02


@dataclass
class Watched:
    """A proxy that reports its resource usage."""

    process: Process
    url: str
    samples: list[dict[str, int]] = field(default_factory=list)

    async def listen(self) -> None:
        """Record the samples that the proxy prints."""
        assert self.process.stdout is not None
        async for line in self.process.stdout:
            self.samples.append(json.loads(line))

    def of(self, name: str, *, begin: float = 0.0) -> list[float]:
        """Return the samples of one figure, without the first part."""
        found = [float(sample[name]) for sample in self.samples if name in sample]
        return found[int(len(found) * begin) :]


@asynccontextmanager
async def watched(folder: Path, keys: list[Owner]) -> AsyncIterator[Watched]:
    """Run a proxy in its own process."""
    variables = {
        "PROXY_PORT": "0",
        "PROXY_DATA_DIR": str(folder),
        "PROXY_API_KEY": " ".join(f"{owner.name}={owner.key}" for owner in keys),
        "PROXY_WORKER_TOKEN": "token",
        "PROXY_WEBHOOK_ALLOW": "127.0.0.1",
        "PROXY_LIMIT": " ".join(f"{name}=0/0" for name in LIMITS),
        "PROXY_LEASE": "2",
        "PYTHONPATH": os.pathsep.join(str(ROOT / name) for name in ("", "tests")),
    }
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "harness.proxy.memory_process",
        cwd=ROOT,
        env=os.environ | variables,
        stdout=PIPE,
    )
    assert process.stdout is not None
    running = Watched(process, (await process.stdout.readline()).decode().strip())
    listening = asyncio.create_task(running.listen())
    try:
        yield running
    finally:
        process.send_signal(signal.SIGTERM)
        await asyncio.wait_for(process.wait(), 30)
        await listening


async def reborn(url: str) -> None:
    """Run workers that are killed one after another; each has another name."""
    number = 0
    while True:
        number += 1
        variables = environment(
            connect=url, token="token", id=f"reborn-{number}", log_level="warning"
        )
        async with worker_process(variables=variables) as running:
            await asyncio.sleep(REBIRTH_SECONDS)
            running.kill()


async def err(seen: OwnerLoad, owner: Owner) -> None:
    """Send one of many kinds of invalid requests, without a key and with one."""
    wrong = [
        ("POST", CHAT, {"data": b"{", "headers": {"Content-Type": "application/json"}}),
        ("POST", CHAT, {"json": chat() | {"model": f"none-{owner.chance.random()}"}}),
        ("POST", CHAT, {"json": chat(fault="cut:1", stream=owner.chance.random() < 0.5)}),
        ("POST", CHAT, {"json": chat(fault="status:500")}),
        ("POST", "/v2/default/run", {"json": {}}),
        ("POST", "/v2/default/runsync", {"json": {"input": {"prompt": 1}}}),
        ("GET", f"/v2/default/status/{owner.chance.random()}", {}),
        ("GET", f"/v2/none-{owner.chance.random()}/health", {}),
        ("GET", f"/{owner.chance.random()}", {}),
    ]
    method, path, more = owner.chance.choice(wrong)
    # Without a key.
    async with seen.http.request(method, path, **more) as response:
        assert response.status >= 400
    await seen.ask(owner, method, path, **more)


async def be_told(seen: OwnerLoad, owner: Owner, hook: Receiver) -> None:
    """Submit a job with a webhook, whose receiver fails occasionally."""
    hook.statuses[:] = [owner.chance.choice([200, 200, 500])]
    order = {
        "input": prompt(owner.mark),
        "webhook": hook.url,
        "s3Config": {"accessId": "a", "accessSecret": "b"},
    }
    status, _, _ = await seen.ask(owner, "POST", "/v2/default/run", json=order)
    assert status == 200
    while not hook.received.empty():
        hook.received.get_nowait()


async def ask(seen: OwnerLoad, owner: Owner) -> None:
    """Send any request. An answer may be incomplete if its worker is killed."""
    try:
        await one_request(seen, owner)
    except AssertionError:
        seen.done["disturbed"] += 1


async def let_go(seen: OwnerLoad, owner: Owner) -> None:
    """Expire the finished jobs of an owner during the soak instead of half an hour later.

    This includes the jobs of clients that disconnected before they received an id.
    """
    owner.jobs[:] = owner.jobs[-5:]
    for status in FINAL:
        _, body, _ = await seen.ask(owner, "GET", f"/v2/default/requests?limit=200&status={status}")
        for row in json.loads(body)["requests"]:
            await seen.ask(owner, "GET", f"/v2/default/status/{row['id']}?ttl=1000")


async def soak(seen: OwnerLoad, hook: Receiver, seconds: float) -> None:
    """Send all requests, each at its scheduled time, regardless of the others."""
    loop, chance = asyncio.get_running_loop(), random.Random(1)
    begun = loop.time()
    async with asyncio.TaskGroup() as group:
        for number in range(int(RATE * seconds)):
            await asyncio.sleep(max(0.0, begun + number / RATE - loop.time()))
            owner = chance.choice(seen.owners)
            kind = chance.choices(("ask", "err", "webhook", "let go"), (65, 22, 11, 2))[0]
            seen.done[kind] += 1
            match kind:
                case "ask":
                    group.create_task(ask(seen, owner))
                case "err":
                    group.create_task(err(seen, owner))
                case "webhook":
                    group.create_task(be_told(seen, owner, hook))
                case _:
                    group.create_task(let_go(seen, owner))


@pytest.mark.torture
@pytest.mark.timeout(MINUTES * 60 + 300)
async def test_a_soak_leaves_nothing_behind(tmp_path: Path) -> None:
    people = owners(OWNERS, 1)
    async with AsyncExitStack() as stack:
        hook = await stack.enter_async_context(receiver())
        proxy = await stack.enter_async_context(watched(tmp_path, people))
        for number in range(2):
            variables = environment(
                connect=proxy.url, token="token", id=f"w-{number}", log_level="warning"
            )
            await stack.enter_async_context(worker_process(variables=variables))
        connector = aiohttp.TCPConnector(limit=0)
        http = await stack.enter_async_context(
            aiohttp.ClientSession(proxy.url, connector=connector)
        )
        seen = OwnerLoad(http, people)
        dying = asyncio.create_task(reborn(proxy.url))
        try:
            await soak(seen, hook, MINUTES * 60)
        finally:
            dying.cancel()
            await asyncio.gather(dying, return_exceptions=True)
        assert seen.foreign == []
        assert seen.done["disturbed"] <= DISTURBED * RATE * MINUTES * 60
        weigh(proxy, seen.done, (tmp_path / "jobs.db").stat().st_size)


def weigh(proxy: Watched, done: Counter[str], size: int) -> None:
    """Assert that neither memory nor the other figures grew over time."""
    tell("requests of the soak", sum(done.values()))
    # The series shows whether memory climbs or took one step.
    for minute, memory in enumerate(proxy.of("rss")[::60]):
        tell(f"memory after {minute} minutes", round(memory / 2**20, 2), "", "MB")
    tell("size of the store's file", size / 2**20, "", "MB")
    growing = []
    # RSS contains the gaps between blocks. The heap tells a leak from gaps.
    for name in ("rss", "heap"):
        line = slope(proxy.of(name, begin=WARM))
        goal = "< 1, or not distinguishable from 0"
        tell(f"growth of {name}", round(line.each * 3600 / 2**20, 2), goal, "MB/h")
        tell("its lower bound", round(line.least * 3600 / 2**20, 2), "", "MB/h")
        if not line.is_flat and line.each * 3600 >= GROWTH_AN_HOUR:
            growing.append(f"{name}: {line}")
    for name in ("fds", "tasks", *COUNTS, *TABLES):
        samples = proxy.of(name, begin=WARM)
        half = len(samples) // 2
        first, second = fmean(samples[:half]), fmean(samples[half:])
        tell(f"{name}, first and second half", round(first, 1), "flat", str(round(second, 1)))
        allowed = first * COUNT_GROWTH if name in COUNTS else first * TABLE_GROWTH + TABLE_NOISE
        if second > allowed:
            growing.append(f"{name}: {first} to {second}")
    assert not growing
