"""Processes are killed and stopped, and connections cut, while many clients work.

Afterwards every acknowledged job has ended once, with its exact output, and every client has one
final answer.
"""

import asyncio
import json
import random
import signal
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from urllib.parse import parse_qs, urlsplit

import aiohttp
import pytest
from harness.load.figures import tell
from harness.network.cable import Cable, cable
from harness.network.webhook_receiver import Receiver, receiver
from harness.proxy.queue_api import QueueClient, long
from harness.storm.clients import Clients, sdk_clients
from harness.storm.nodes import Node, proxy_node, stock_node, worker_node
from harness.storm.record import Asked, findings
from harness.tools.environments import python
from harness.tools.ports import free_port
from harness.tools.waiting import until

from proxy.access.limits import LIMITS
from proxy.cli.stock_worker import environment as stock_environment

TOKEN = "worker-token-of-this-story"
WORKERS = 3
SLOTS = 8
ENDPOINTS = ("default", "stock")
STOCK_HANDLER = Path(__file__).parents[1] / "handlers" / "indexed.py"
# Of 20 requests: 6 are streams.
KINDS = ["status"] * 7 + ["sync"] * 3 + ["after"] * 2 + ["follow"] * 2
KINDS += ["openai"] * 2 + ["whole"] * 2 + ["stock"] + ["sdk"]
TOKENS = 30
PACE_MICROSECONDS = 40_000
# Requests at the same time.
CLIENTS = 60
QUIET_SECONDS = 90.0
# Requests that are sent before a kill if no job is in progress, and the time for the first of them.
FRESH_REQUESTS = 8
FRESH_SECONDS = 60.0
TORTURE_SECONDS = 1_200
# A kill waits for this long until it meets a running job, and the proxy has this time to name them.
HIT_SECONDS = 2.0
# The share of the kills of the long form that must meet one.
HITS = 0.7


class Storm:
    """A proxy, its workers and the damage that is done to them."""

    def __init__(
        self,
        url: str,
        nodes: list[Node],
        lines: list[Cable],
        chance: random.Random,
        requests: list[Asked],
    ) -> None:
        self._url = url
        # Kills that met a running job of their victim; of the proxy, any running job.
        self.hits = 0
        self.proxy = nodes[0]
        self._nodes = nodes
        self._lines = lines
        self._chance = chance
        self.done: Counter[str] = Counter()
        self.requests = requests
        # One permit for each request that may be sent; the SDK's requests need none.
        self.permits = asyncio.Semaphore(0)
        self._held_back = sum(asked.kind != "sdk" for asked in requests)

    async def rage(self, deeds: list[str], pause: float, stop_seconds: tuple[float, float]) -> None:
        """Kill and stop processes and cut connections, about one in `pause` seconds.

        Each of them lets an equal share of the requests go, so that the requests last as long as
        the storm, on a machine of any speed.
        """
        self._chance.shuffle(deeds)
        async with asyncio.TaskGroup() as group:
            for left, deed in zip(range(len(deeds), 0, -1), deeds, strict=True):
                self._permit(self._held_back // (left + 1))
                await asyncio.sleep(self._chance.uniform(0.5, 1.5) * pause)
                self.done[deed] += 1
                # The proxy is the most frequent victim.
                victim = self._chance.choice([self.proxy, *self._nodes])
                match deed:
                    case "cut":
                        self._chance.choice(self._lines).cut()
                    case "stop":
                        group.create_task(_stop(victim, self._chance.uniform(*stop_seconds)))
                    case _:
                        await self._kill(victim)
        self._permit(self._held_back)

    async def _kill(self, victim: Node) -> None:
        assert victim.is_running, f"{victim.name} has ended by itself: see {victim.log}"
        if not self._has_work():
            self._permit(min(FRESH_REQUESTS, self._held_back))
            await until(self._has_work, FRESH_SECONDS, "a job is in progress before the kill")
        with suppress(AssertionError):
            await until(partial(self._is_hit, victim), HIT_SECONDS, "it runs a job")
            self.hits += 1
        await victim.kill()
        await victim.start()

    async def _is_hit(self, victim: Node) -> bool:
        """Return True if the victim runs a job; the proxy does if any worker runs one."""
        workers = set()
        limit = aiohttp.ClientTimeout(HIT_SECONDS)
        async with aiohttp.ClientSession(self._url, timeout=limit) as http:
            for endpoint in ENDPOINTS:
                running = f"/v2/{endpoint}/requests?status=IN_PROGRESS&limit=200"
                try:
                    async with http.get(running) as response:
                        workers |= {row["workerId"] for row in (await response.json())["requests"]}
                except (aiohttp.ClientError, KeyError, TimeoutError):
                    # The proxy is starting, or stopped.
                    return False
        return bool(workers) if victim is self.proxy else victim.name in workers

    def _has_work(self) -> bool:
        return any(asked.job and not asked.ends for asked in self.requests)

    def _permit(self, requests: int) -> None:
        self._held_back -= requests
        for _ in range(requests):
            self.permits.release()


async def _stop(victim: Node, seconds: float) -> None:
    victim.signal(signal.SIGSTOP)
    await asyncio.sleep(seconds)
    victim.signal(signal.SIGCONT)


@asynccontextmanager
async def started(
    folder: Path, chance: random.Random, requests: list[Asked]
) -> AsyncIterator[tuple[Storm, str, Cable]]:
    """Run a proxy with native and stock workers; yield it, its URL, and the clients' cable."""
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    settings = {
        "PROXY_LEASE": "3",
        "PROXY_LIMIT": " ".join(f"{name}=0" for name in LIMITS),
        "PROXY_WEBHOOK_ALLOW": "127.0.0.1",
        "PROXY_ENDPOINT": " ".join(ENDPOINTS),
    }
    sdk = python(".venv-sdk")
    async with cable(url) as near, cable(url) as far:
        nodes = [proxy_node(port, folder, TOKEN, **settings)]
        nodes += [
            worker_node(f"w{number}", far.url, folder, TOKEN, SLOTS) for number in range(WORKERS)
        ]
        variables = stock_environment(url, "stock", TOKEN, "s0", ping_millis=500)
        nodes.append(stock_node("s0", sdk, STOCK_HANDLER, variables, folder))
        try:
            for node in nodes:
                await node.start()
            yield Storm(url, nodes, [near, far], chance, requests), url, near
        finally:
            for node in nodes:
                node.signal(signal.SIGCONT)
                await node.kill()


async def play(
    folder: Path, jobs: int, deeds: list[str], pause: float, stop_seconds: tuple[float, float]
) -> tuple[list[str], float]:
    """Send requests during a storm; return what went wrong, and the share of kills that met a
    running job.
    """
    seed = random.randrange(10**6)
    chance = random.Random(seed)
    wishes = [Asked(f"p{number}", TOKENS, chance.choice(KINDS)) for number in range(jobs)]
    async with (
        started(folder, chance, wishes) as (running, url, near),
        receiver() as hook,
        aiohttp.ClientSession(url, connector=aiohttp.TCPConnector(limit=0)) as http,
    ):
        queue = QueueClient(SimpleNamespace(http=http))  # type: ignore[arg-type]
        await until(lambda: _ready(queue), 30, "the workers are ready")
        lines = [Clients(each, http, PACE_MICROSECONDS, hook.url) for each in (url, near.url)]
        async with asyncio.TaskGroup() as group:
            group.create_task(running.rage(deeds, pause, stop_seconds))
            group.create_task(_send_all(running, lines, url))
        await until(lambda: _is_quiet(queue), QUIET_SECONDS, "no job waits or runs")
        await until(lambda: _has_webhooks(hook, wishes), QUIET_SECONDS, "webhooks arrive")
        ended = {
            asked.job: found
            for asked in wishes
            if asked.job and (found := asked.shown or await lines[0].ended(asked)) is not None
        }
        await _check_slots(queue)
        for line in lines:
            await line.close()
    outcomes = Counter(f"{asked.kind} {'/'.join(asked.ends)}" for asked in wishes)
    tell("requests of the storm", jobs, seed=seed)
    kills = deeds.count("kill")
    tell("kills", kills, "", str(dict(running.done)), seed=seed)
    tell("share of the kills that met a running job", running.hits / kills, f">= {HITS}", seed=seed)
    tell("final answers", sum(outcomes.values()), "", str(dict(outcomes.most_common())))
    found = findings(wishes, ended)
    tell("findings", len(found), "0", " | ".join(found[:20]), seed=seed)
    return found, running.hits / kills


async def _send_all(storm: Storm, lines: list[Clients], url: str) -> None:
    """Send the requests as they are permitted, a limited number at a time."""
    wishes = storm.requests
    sdk = [asked for asked in wishes if asked.kind == "sdk"]
    for asked in sdk[1::2]:
        asked.consumes = True
    places = asyncio.Semaphore(CLIENTS)

    async def send(number: int, asked: Asked) -> None:
        await storm.permits.acquire()
        async with places:
            await lines[number % 2].send(asked)

    async with asyncio.TaskGroup() as group:
        group.create_task(sdk_clients(python(".venv-sdk"), url, sdk, PACE_MICROSECONDS))
        for number, asked in enumerate(wishes):
            if asked.kind != "sdk":
                group.create_task(send(number, asked))


def _has_webhooks(hook: Receiver, wishes: list[Asked]) -> bool:
    """Record the webhooks that have arrived; return True if no job lacks its webhook."""
    by_prompt = {asked.prompt: asked for asked in wishes}
    while not hook.received.empty():
        webhook = hook.received.get_nowait()
        (prompt,) = parse_qs(urlsplit(webhook.path).query)["job"]
        notification = json.loads(webhook.body)
        if notification["id"] == by_prompt[prompt].job:
            by_prompt[prompt].webhooks.append(notification["status"])
    return all(asked.webhooks for asked in wishes if asked.kind == "status" and asked.job)


async def _check_slots(queue: QueueClient) -> None:
    """Check that every slot of the native workers can be filled and freed."""
    slots = WORKERS * SLOTS
    jobs = [await queue.run(long(f"slot{number}")) for number in range(slots + 1)]
    await until(lambda: _counts(queue, 1, slots), QUIET_SECONDS, "every slot has a job")
    for job in jobs:
        await queue.call("POST", f"cancel/{job}")
    await until(lambda: _counts(queue, 0, 0), QUIET_SECONDS, "every slot is free")


async def _counts(queue: QueueClient, in_queue: int, in_progress: int) -> bool:
    jobs = (await _health(queue)).get("jobs", {})
    return (jobs.get("inQueue"), jobs.get("inProgress")) == (in_queue, in_progress)


async def _is_quiet(queue: QueueClient) -> bool:
    return await _counts(queue, 0, 0) and await _ready(queue)


async def _ready(queue: QueueClient) -> bool:
    return bool((await _health(queue)).get("workers", {}).get("ready") == WORKERS)


async def _health(queue: QueueClient) -> dict[str, Any]:
    """Return the health of the endpoint; empty while the proxy is not reachable."""
    try:
        answer: dict[str, Any] = (await queue.call("GET", "health")).body
    except aiohttp.ClientError:
        return {}
    return answer


@pytest.mark.slow
async def test_a_short_storm_loses_and_repeats_nothing(tmp_path: Path) -> None:
    deeds = ["kill"] * 10 + ["stop"] + ["cut"] * 4
    found, _ = await play(tmp_path, 300, deeds, 1.0, (1.0, 3.0))
    assert found == []


@pytest.mark.torture
@pytest.mark.timeout(TORTURE_SECONDS)
async def test_a_long_storm_loses_and_repeats_nothing(tmp_path: Path) -> None:
    deeds = ["kill"] * 200 + ["stop"] * 40 + ["cut"] * 100
    found, hits = await play(tmp_path, 10_000, deeds, 2.0, (5.0, 30.0))
    assert found == []
    assert hits >= HITS
