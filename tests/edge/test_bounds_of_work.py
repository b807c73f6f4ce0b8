"""Large amounts of work are done in short turns of the event loop and in small transactions."""

import asyncio
import json
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import aiohttp
import pytest
from harness.data.jobs import submission
from harness.data.store_steps import RUN, take
from harness.load.figures import tell
from harness.load.stalled import TOKEN, loads, stall, until_stalled
from harness.network.webhook_receiver import receiver
from harness.proxy.measured import Measured, measured
from harness.proxy.process import MB

from proxy.jobs.lifecycle import Event
from proxy.jobs.model import Input, JobId, Millis, Owner
from proxy.store.sqlite.store import SqliteStore
from proxy.system import System

pytestmark = [pytest.mark.torture, pytest.mark.timeout(900)]

OWNER = Owner("anonymous")
TURN_MAX_MS = 50
TRANSACTION_MAX_ROWS = 1_000
TRANSACTION_MAX_BYTES = 8 * MB
PIECES = 900_000
RESULTS = 60
RESULT_BYTES = 10 * MB
QUEUED_JOBS = 200_000
DUE_WEBHOOKS = 60_000
WATCH_SECONDS = 10.0
DUE_CPU_SHARE = 0.05
BATCH = 10_000
SETTINGS = {
    "limit": "run=0 status=0 stream=0 purge-queue=0",
    "log_level": "warning",
    "webhook_allow": "127.0.0.1",
}

Prepare = Callable[[SqliteStore, Millis], Awaitable[None]]


@asynccontextmanager
async def prepared(folder: Path, prepare: Prepare) -> AsyncIterator[Measured]:
    """Fill a database, then run a proxy with it; its figures begin after its start."""
    system = System()
    store = SqliteStore(folder / "jobs.db", system.disk, system.start_runner)
    async with store.open():
        await prepare(store, system.clock.now())
    async with measured(folder, **SETTINGS) as proxy:
        await proxy.figures()
        yield proxy


async def submit(store: SqliteStore, now: Millis, number: int, **changed: object) -> list[JobId]:
    names = [f"{one}" for one in range(number)]
    for start in range(0, number, BATCH):
        wanted = [
            submission(name, owner=OWNER, work=Input(b"1"), **changed)
            for name in names[start : start + BATCH]
        ]
        await asyncio.gather(*(store.submit(one, now) for one in wanted))
    return [JobId(name) for name in names]


async def report(proxy: Measured, load: str) -> None:
    """Tell the figures of a load, and check them."""
    figures = await proxy.figures()
    turn = figures.turn_p999 * 1000
    tell(f"{load}: turn, p99.9", round(turn, 1), f"<= {TURN_MAX_MS}", "ms")
    tell(f"{load}: longest turn", round(figures.longest_turn * 1000, 1), "", "ms")
    tell(f"{load}: rows of a transaction", figures.rows, f"<= {TRANSACTION_MAX_ROWS}")
    tell(f"{load}: longest transaction", round(figures.longest_transaction * 1000), "", "ms")
    size = round(figures.bytes / MB, 1)
    tell(f"{load}: bytes of a transaction", size, f"<= {TRANSACTION_MAX_BYTES // MB}", "MB")
    assert figures.rows <= TRANSACTION_MAX_ROWS
    assert figures.bytes <= TRANSACTION_MAX_BYTES
    assert turn <= TURN_MAX_MS


async def test_a_reader_of_a_long_stream(tmp_path: Path) -> None:
    async def prepare(store: SqliteStore, now: Millis) -> None:
        await submit(store, now, 1)
        await take(store, now=now)
        element = b'{"output":"token"}'
        for _ in range(0, PIECES, BATCH):
            await store.append(JobId("0"), RUN, [element] * BATCH)
        await store.settle(JobId("0"), Event.COMPLETE, now=now)

    async with prepared(tmp_path, prepare) as proxy, aiohttp.ClientSession(proxy.url) as http:
        headers = {"Accept": "text/event-stream"}
        events = 0
        async with http.get("/v2/default/stream/0", headers=headers) as response:
            async for line in response.content:
                events += line.startswith(b"id: ")
        assert events == PIECES
        await report(proxy, f"{PIECES:,} pieces as events")


async def test_readers_stall(tmp_path: Path) -> None:
    settings = SETTINGS | {"worker_token": TOKEN}
    async with measured(tmp_path, **settings) as proxy, aiohttp.ClientSession(proxy.url) as http:
        for load in await loads(http):
            await proxy.figures()
            with stall(proxy.url, load):
                await until_stalled(proxy)
                await report(proxy, load.name)


async def test_large_results_are_forgotten(tmp_path: Path) -> None:
    async def prepare(store: SqliteStore, now: Millis) -> None:
        jobs = await submit(store, now, RESULTS)
        await take(store, limit=RESULTS, now=now)
        for job in jobs:
            await store.settle(job, Event.COMPLETE, now=now, output=b'"%b"' % (b"x" * RESULT_BYTES))
        for job in jobs:
            await store.limit_life(job, Millis(now + 5_000))

    async with prepared(tmp_path, prepare) as proxy, aiohttp.ClientSession(proxy.url) as http:
        waits = []
        has_results = True
        while has_results:
            began = time.monotonic()
            async with http.post("/v2/default/run", json={"input": 1}) as response:
                assert response.status == 200
            waits.append(time.monotonic() - began)
            async with http.get(f"/v2/default/status/{RESULTS - 1}") as response:
                has_results = response.status == 200
                await response.read()
        tell(f"{RESULTS} results forgotten: longest `run`", round(max(waits) * 1000), "", "ms")
        await report(proxy, f"{RESULTS} results of {RESULT_BYTES // MB} MB forgotten")


async def test_a_long_queue_is_purged(tmp_path: Path) -> None:
    async def prepare(store: SqliteStore, now: Millis) -> None:
        await submit(store, now, QUEUED_JOBS)

    async with prepared(tmp_path, prepare) as proxy, aiohttp.ClientSession(proxy.url) as http:
        began = time.monotonic()
        async with http.post("/v2/default/purge-queue", timeout=None) as response:
            assert json.loads(await response.read())["removed"] == QUEUED_JOBS
        load = f"purge of {QUEUED_JOBS:,} jobs"
        tell(load, round(time.monotonic() - began, 1), "", "s")
        await report(proxy, load)


async def test_a_dead_receiver_has_many_webhooks(tmp_path: Path) -> None:
    async with receiver() as dead:
        dead.may_answer.clear()

        async def prepare(store: SqliteStore, now: Millis) -> None:
            jobs = await submit(store, now, DUE_WEBHOOKS, webhook=dead.url)
            await asyncio.gather(*(store.settle(job, Event.CANCEL, now=now) for job in jobs))

        async with prepared(tmp_path, prepare) as proxy:
            before = proxy.cpu_seconds()
            # The load is the time that passes.
            await asyncio.sleep(WATCH_SECONDS)
            load = f"{DUE_WEBHOOKS:,} due webhooks"
            share = (proxy.cpu_seconds() - before) / WATCH_SECONDS
            tell(f"{load}: CPU", round(100 * share, 1), "<= 5", "% of a core")
            assert share <= DUE_CPU_SHARE
            await report(proxy, load)
