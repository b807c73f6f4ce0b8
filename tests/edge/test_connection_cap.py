"""The connection limit: clients above it are refused, and workers can still connect."""

import json
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from pathlib import Path

import aiohttp
from harness.network.attack import is_answered
from harness.network.malformed.case import asks
from harness.network.raw_connection import Answer, strict
from harness.proxy.process import alone
from harness.proxy.server import CHAT, Proxy, chat, serving
from harness.tools.waiting import until
from harness.worker.process import worker

CLIENT_LIMIT = 50
CLIENTS = 200
TOKEN = "token-of-a-worker"
DESCRIPTORS = 256


@asynccontextmanager
async def settled(url: str, clients: int) -> AsyncIterator[list[Answer | None]]:
    """Open connections that send one request each and stay open; yield their responses."""
    async with AsyncExitStack() as stack:
        answers = []
        for _ in range(clients):
            line = await stack.enter_async_context(strict(url))
            await line.say(asks())
            answers.append(await line.answer())
        yield answers


def is_full(answer: Answer | None) -> bool:
    """Return True for the refusal of a client above the limit.

    With too many refusals at once, some connections are closed without a response.
    """
    if answer is None:
        return True
    code = json.loads(answer.body)["error"]["code"]
    is_refused = answer.status == 503 and answer.is_last and "retry-after" in answer.headers
    return is_refused and code == "too_many_connections"


async def polls(url: str) -> bool:
    """Return True if a Runpod worker's poll is answered; a closed connection counts as False."""
    headers = {"Authorization": TOKEN}
    async with aiohttp.ClientSession(headers=headers) as http:
        with suppress(aiohttp.ClientConnectionError):
            async with http.get(f"{url}/v2/default/job-take/pod-1") as answer:
                return answer.status == 204
    return False


async def is_served(url: str) -> bool:
    return await is_answered(url) == ""


async def full_of_clients(proxy: Proxy) -> None:
    """Connect four times as many clients as allowed, then both kinds of workers."""
    async with settled(proxy.url, CLIENTS) as answers:
        served = [answer.status for answer in answers[:CLIENT_LIMIT] if answer is not None]
        assert served == [200] * CLIENT_LIMIT
        assert any(answers[CLIENT_LIMIT:])
        assert all(is_full(answer) for answer in answers[CLIENT_LIMIT:])
        assert proxy.parts.edge.connections.size <= proxy.parts.edge.connections.limit
        await until(lambda: polls(proxy.url), what="a Runpod worker is served")
        async with worker(proxy):
            async with strict(proxy.url) as late:
                await late.say(asks())
                answer = await late.answer()
                assert answer is not None
                assert is_full(answer)
            assert proxy.ready


async def test_workers_can_connect_when_clients_use_all_other_connections() -> None:
    async with serving(max_connections=CLIENT_LIMIT, worker_token=TOKEN, poll_hold=0.5) as proxy:
        await full_of_clients(proxy)
        await until(lambda: is_served(proxy.url), what="clients are served again")
        async with worker(proxy), proxy.http.post(CHAT, json=chat("again")) as response:
            assert response.status == 200


async def test_silent_connections_are_closed_and_make_room_for_new_clients() -> None:
    async with (
        serving(max_connections=CLIENT_LIMIT, head_timeout=1.0) as proxy,
        AsyncExitStack() as stack,
    ):
        silent = [await stack.enter_async_context(strict(proxy.url)) for _ in range(CLIENTS)]
        assert proxy.parts.edge.connections.size <= proxy.parts.edge.connections.limit
        await until(lambda: is_served(proxy.url), what="clients are served again")
        assert [await line.answer() for line in silent] == [None] * CLIENTS
        assert proxy.parts.edge.connections.size <= 1, "at most the connection of the last request"


async def test_descriptors_never_run_out(tmp_path: Path) -> None:
    settings = {"worker_token": TOKEN, "poll_hold": 0.5}
    async with alone(tmp_path, most_descriptors=DESCRIPTORS, **settings) as proxy:
        async with settled(proxy.url, 2 * DESCRIPTORS) as answers:
            served = [answer for answer in answers if answer is not None and answer.status == 200]
            assert DESCRIPTORS // 4 < len(served) < DESCRIPTORS
            assert all(is_full(answer) for answer in answers[len(served) :])
            assert proxy.descriptors() < DESCRIPTORS
            await until(lambda: polls(proxy.url), what="a Runpod worker is served")
        await until(lambda: is_served(proxy.url), what="clients are served again")
        assert await proxy.command.stop() == 0
        assert "Too many open files" not in proxy.command.text
