"""Stock workers that post malformed results: only their own job fails."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio
from harness.load.figures import tell
from harness.load.lag import watching
from harness.proxy.queue_api import QueueClient
from harness.proxy.server import CHAT, Proxy, chat
from harness.runpod.raw_worker import Raw
from harness.runpod.sdk_worker import stock_proxy

pytestmark = pytest.mark.slow

MB = 1024 * 1024
LISTS = b"[%b1]" % (b"[]," * 2_400_000)


@pytest_asyncio.fixture
async def proxy() -> AsyncIterator[Proxy]:
    async with stock_proxy(poll_hold=1.0) as running:
        yield running


def resident() -> int:
    status = Path("/proc/self/status").read_text()
    return next(
        int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith("VmRSS")
    )


RESULTS = {
    "no json": (b"{", "FAILED"),
    "no utf-8": (b'{"output":"\xff"}', "FAILED"),
    "a surrogate": (b'{"output":"\\ud800"}', "FAILED"),
    "nested": (b'{"output":' + b"[" * MB, "FAILED"),
    "too many lists": (b'{"output":[%b]}' % (b"[]," * 3_000_000), "FAILED"),
    "lists": (b'{"output":%b}' % LISTS, "COMPLETED"),
    "an error of lists": (b'{"error":%b}' % LISTS, "FAILED"),
    "a status of lists": (b'{"output":1,"status":%b}' % LISTS, "COMPLETED"),
    "a wish of lists": (b'{"output":1,"stopPod":%b}' % LISTS, "COMPLETED"),
    "not a number": (b'{"output":[NaN]}', "COMPLETED"),
    "many of them": (b'{"output":[%bNaN]}' % (b'"NaN",NaN,' * 300_000), "COMPLETED"),
    "a number that is none for json": (b'{"output":0x10}', "FAILED"),
}


@pytest.mark.parametrize("name", RESULTS)
async def test_a_hostile_result_ends_its_own_job(proxy: Proxy, name: str) -> None:
    queue = QueueClient(proxy)
    body, status = RESULTS[name]
    async with Raw(proxy) as raw:
        job, other = await queue.run(1), await queue.run(2)
        assert {one["id"] for one in await raw.take(batch=2)} == {job, other}
        before = resident()
        async with watching() as lag:
            assert await raw.done(job, body) == 200
        used = (resident() - before - 4 * len(body)) / MB
        assert await raw.done(other, {"output": "fine"}) == 200
        assert (await queue.end(job))["status"] == status
        assert (await queue.end(other))["output"] == "fine"
        tell(f"cost.stock.lag {name}", round(lag.longest * 1000), "<= 50", "ms")
        assert used < 40


ANSWERS = {
    "lists": b'{"output":%b}' % LISTS,
    "lists in a list": b'{"output":[%b]}' % LISTS,
    "an error of lists": b'{"error":%b}' % LISTS,
    "an error object of lists": b'{"output":[{"object":"error","x":%b}]}' % LISTS,
    "no error": b'{"output":[{"object":%b}]}' % LISTS,
    "a text of lists": b'{"output":["%b"]}' % LISTS,
}


@pytest.mark.parametrize("stream", [True, False], ids=["stream", "whole"])
@pytest.mark.parametrize("name", ANSWERS)
async def test_a_hostile_answer_reaches_its_own_client(
    proxy: Proxy, name: str, stream: bool
) -> None:
    async with Raw(proxy) as raw:

        async def call() -> int:
            async with proxy.http.post(CHAT, json=chat(stream=stream)) as response:
                await response.read()
                return response.status

        asked = asyncio.create_task(call())
        job = (await raw.next_job())["id"]
        before = resident()
        assert await raw.chunk_bytes(job, ANSWERS[name]) == 200
        assert await raw.done(job, ANSWERS[name]) == 200
        assert await asked in {200, 500, 502}
        assert (resident() - before) / MB < 4 * len(ANSWERS[name]) / MB + 40


async def test_hostile_queries_and_ids_have_no_effect(proxy: Proxy) -> None:
    async with Raw(proxy) as raw:
        names = ("x" * 129, "%00", "%ff", "..%2fx", "a%0ab", "a/b")
        # The calls are concurrent, since each refusal is delayed by seconds.
        statuses = await asyncio.gather(*(raw.done(name, {"output": 1}) for name in names))
        assert set(statuses) <= {200, 400, 404}
        job = await QueueClient(proxy).run(1)
        taken = await raw.take(batch=10**30)
        assert [one["id"] for one in taken] == [job]
        await raw.ping(job, "%00", "x" * 10_000, *(f"{one}" for one in range(3_000)))
        assert await raw.done(job, {"output": 1}) == 200
        assert (await QueueClient(proxy).end(job))["output"] == 1
