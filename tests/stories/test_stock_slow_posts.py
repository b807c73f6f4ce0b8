"""Stock workers whose large posts arrive slowly: the posts of others do not wait for them."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack

import pytest_asyncio
from harness.network.raw_http import request, wire
from harness.proxy.queue_api import QueueClient
from harness.proxy.server import Proxy
from harness.runpod.raw_worker import Raw
from harness.runpod.sdk_worker import stock_proxy

LARGEST = 64 * 1024 * 1024
SLOW_BYTES = 2048
PROMPT_SECONDS = 10.0


@pytest_asyncio.fixture
async def proxy() -> AsyncIterator[Proxy]:
    async with stock_proxy(poll_hold=1.0) as running:
        yield running


async def post_slowly(stack: AsyncExitStack, proxy: Proxy, worker: str, size: int) -> None:
    """Begin to post a result of this size, of which little arrives."""
    connection = await stack.enter_async_context(wire(proxy))
    head = request(
        f"POST /v2/default/job-done/{worker}/job?gpu=none&isStream=false",
        f"Authorization: {proxy.parts.token}",
        f"Content-Length: {size}",
        body=b" " * SLOW_BYTES,
    )
    await connection.send(head)
    # The proxy begins to wait for the memory before it reads the next request of this test.
    async with proxy.http.get("/livez") as response:
        assert response.status == 200


async def answered(proxy: Proxy, raw: Raw, output: str) -> None:
    """Run a job on this worker and post its result, which must be accepted promptly."""
    queue = QueueClient(proxy)
    job = await queue.run(1)
    assert (await raw.next_job())["id"] == job
    assert await asyncio.wait_for(raw.done(job, {"output": output}), PROMPT_SECONDS) == 200
    assert (await queue.end(job))["output"] == output


async def test_large_posts_of_two_slow_workers_do_not_delay_the_result_of_a_third(
    proxy: Proxy,
) -> None:
    async with AsyncExitStack() as stack, Raw(proxy, "third") as third:
        for worker in ("first", "second"):
            await post_slowly(stack, proxy, worker, LARGEST)
        await answered(proxy, third, "small")
        await answered(proxy, third, "x" * 2_000_000)


async def test_a_worker_with_many_large_posts_does_not_delay_the_results_of_others(
    proxy: Proxy,
) -> None:
    async with AsyncExitStack() as stack, Raw(proxy, "other") as other:
        for _ in range(8):
            await post_slowly(stack, proxy, "slow", LARGEST)
        await answered(proxy, other, "small")
        await answered(proxy, other, "x" * 2_000_000)


async def test_a_small_post_does_not_wait_for_large_ones(proxy: Proxy) -> None:
    async with AsyncExitStack() as stack, Raw(proxy, "slow-0") as raw:
        for number in range(8):
            await post_slowly(stack, proxy, f"slow-{number}", LARGEST)
        await answered(proxy, raw, "small")


async def test_many_small_posts_of_a_worker_do_not_delay_those_of_others(proxy: Proxy) -> None:
    async with AsyncExitStack() as stack, Raw(proxy, "other") as other:
        for _ in range(200):
            await post_slowly(stack, proxy, "slow", 200_000)
        await answered(proxy, other, "small")
