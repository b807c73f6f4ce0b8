"""More clients than there are places: those who come too late are told so, and workers get in all the same."""

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

PLACES, CLIENTS = 50, 200
TOKEN = "token-of-a-worker"
DESCRIPTORS = 256


@asynccontextmanager
async def settled(url: str, clients: int) -> AsyncIterator[list[Answer | None]]:
    """So many clients, of which each asks once and stays; what they were told."""
    async with AsyncExitStack() as stack:
        told = []
        for _ in range(clients):
            line = await stack.enter_async_context(strict(url))
            await line.say(asks())
            told.append(await line.answer())
        yield told


def is_full(answer: Answer | None) -> bool:
    """Whether this is what one is told for whom there is no place; where too many are told at once, some are cut."""
    if answer is None:
        return True
    code = json.loads(answer.body)["error"]["code"]
    is_told = answer.status == 503 and answer.is_last and "retry-after" in answer.headers
    return is_told and code == "too_many_connections"


async def polls(url: str) -> bool:
    """Whether a stock worker's poll gets through; it tries again when it was cut, as a worker does."""
    headers = {"Authorization": TOKEN}
    async with aiohttp.ClientSession(headers=headers) as http:
        with suppress(aiohttp.ClientConnectionError):
            async with http.get(f"{url}/v2/default/job-take/pod-1") as answer:
                return answer.status == 204
    return False


async def is_served(url: str) -> bool:
    return await is_answered(url) == ""


async def full_of_clients(proxy: Proxy) -> None:
    """Two hundred clients in fifty places; a worker and its jobs come through nevertheless."""
    async with settled(proxy.url, CLIENTS) as told:
        assert [answer.status for answer in told[:PLACES] if answer is not None] == [200] * PLACES
        assert any(told[PLACES:])
        assert all(is_full(answer) for answer in told[PLACES:])
        assert proxy.parts.edge.connections.size <= proxy.parts.edge.connections.limit
        await until(lambda: polls(proxy.url), what="a stock worker gets in")
        async with worker(proxy):
            async with strict(proxy.url) as late:
                await late.say(asks())
                answer = await late.answer()
                assert answer is not None
                assert is_full(answer)
            assert proxy.ready


async def test_workers_get_in_where_clients_have_taken_all_places() -> None:
    async with serving(max_connections=PLACES, worker_token=TOKEN, poll_hold=0.5) as proxy:
        await full_of_clients(proxy)
        await until(lambda: is_served(proxy.url), what="clients are served again")
        async with worker(proxy), proxy.http.post(CHAT, json=chat("again")) as response:
            assert response.status == 200


async def test_silent_connections_are_cut_and_keep_nobody_out_for_long() -> None:
    async with (
        serving(max_connections=PLACES, head_timeout=1.0) as proxy,
        AsyncExitStack() as stack,
    ):
        silent = [await stack.enter_async_context(strict(proxy.url)) for _ in range(CLIENTS)]
        assert proxy.parts.edge.connections.size <= proxy.parts.edge.connections.limit
        await until(lambda: is_served(proxy.url), what="clients are served again")
        assert [await line.answer() for line in silent] == [None] * CLIENTS
        assert proxy.parts.edge.connections.size <= 1, "at most the one that has just asked"


async def test_descriptors_never_run_out(tmp_path: Path) -> None:
    settings = {"worker_token": TOKEN, "poll_hold": 0.5}
    async with alone(tmp_path, most_descriptors=DESCRIPTORS, **settings) as proxy:
        async with settled(proxy.url, 2 * DESCRIPTORS) as told:
            served = [answer for answer in told if answer is not None and answer.status == 200]
            assert DESCRIPTORS // 4 < len(served) < DESCRIPTORS
            assert all(is_full(answer) for answer in told[len(served) :])
            assert proxy.descriptors() < DESCRIPTORS
            await until(lambda: polls(proxy.url), what="a stock worker gets in")
        await until(lambda: is_served(proxy.url), what="clients are served again")
        assert await proxy.command.stop() == 0
        assert "Too many open files" not in proxy.command.text
