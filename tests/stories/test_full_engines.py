"""An engine that takes no further request at present: its jobs wait for another worker."""

import asyncio
import math
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import aiohttp
import pytest
import pytest_asyncio
from harness.proxy.queue_api import QueueClient
from harness.proxy.server import CHAT, Proxy, chat, serving
from harness.runpod.raw_worker import Raw
from harness.tools.waiting import until
from harness.worker.process import worker
from harness.worker.puppet import Puppet, hello, puppet
from harness.worker.upstream_server import MODEL, UpstreamServer, refusal, upstream_server

from proxy.service.fleet import FULL_MAX_SECONDS
from proxy.wire.frames import Chunk, Credit, End, Head, Job, Output

BODY = b'{"error":{"message":"full"}}'


@pytest_asyncio.fixture
async def proxy() -> AsyncIterator[Proxy]:
    """A proxy whose leases outlast the times of these stories."""
    async with serving() as running:
        yield running


@asynccontextmanager
async def engine(proxy: Proxy, name: str, slots: int) -> AsyncIterator[Puppet]:
    """Connect a worker whose engine the test plays."""
    async with puppet(proxy, hello(name), Credit(slots, 0)) as one:
        await until(lambda: any(other.id == name and other.slots for other in proxy.parts.fleet))
        yield one


async def call(proxy: Proxy, text: str = "hello", **more: Any) -> tuple[int, bytes]:
    """Send a chat call; return the status and the body of the answer."""
    async with proxy.http.post(CHAT, json=chat(text, **more)) as response:
        return response.status, await response.read()


async def refuse(worker: Puppet, job: Job, seconds: float = 30.0) -> None:
    """Answer a job with 503."""
    run = (job.job, job.attempt)
    await worker.say(
        Head(*run, 503, "application/json"),
        Chunk(*run, BODY),
        End(*run, "failed", "http_503", "full", seconds),
    )


async def serve(worker: Puppet, job: Job) -> None:
    """Answer a job."""
    run = (job.job, job.attempt)
    await worker.say(
        Head(*run, 200, "application/json"), Chunk(*run, b"{}"), End(*run, "completed")
    )


def full(proxy: Proxy) -> list[str]:
    """Return the ids of the workers whose engines are full."""
    return [one.id for one in proxy.parts.fleet if one.is_full]


async def test_the_only_worker_is_full(proxy: Proxy) -> None:
    async with engine(proxy, "a", 2) as one:
        calling = asyncio.create_task(call(proxy))
        await refuse(one, await one.job())
        assert await calling == (503, BODY)
        assert full(proxy) == ["a"]


async def test_another_worker_takes_the_job_of_a_full_one(proxy: Proxy) -> None:
    async with engine(proxy, "a", 1) as first:
        calling = asyncio.create_task(call(proxy))
        job = await first.job()
        async with engine(proxy, "b", 1) as second:
            await refuse(first, job)
            again = await second.job()
            assert (again.job, again.attempt) == (job.job, 2)
            # The full worker has a free slot, but gets no job; the call waits for the other one.
            waiting = asyncio.create_task(call(proxy))
            await until(lambda: len(proxy.parts.interactive) == 2)
            assert full(proxy) == ["a"]
            await serve(second, again)
            assert await calling == (200, b"{}")
            await serve(second, await second.job())
            assert await waiting == (200, b"{}")
        [ended, _] = proxy.parts.interactive._ended
        assert (ended.attempt, ended.failures) == (2, 0)
        # The first worker has heard of no other job.
        proxy.parts.fleet.end_full(math.inf)
        calling = asyncio.create_task(call(proxy, "later"))
        later = await first.job()
        assert later.job not in (job.job, again.job)
        await serve(first, later)
        await calling


async def test_if_all_workers_are_full_the_client_gets_the_last_refusal(proxy: Proxy) -> None:
    async with engine(proxy, "a", 1) as first, engine(proxy, "b", 1) as second:
        calling = asyncio.create_task(call(proxy, stream=True))
        await asyncio.gather(*(_refuse_next(one) for one in (first, second)))
        assert await calling == (503, BODY)
        assert full(proxy) == ["a", "b"]


async def _refuse_next(worker: Puppet) -> None:
    await refuse(worker, await worker.job())


async def test_a_full_worker_gets_one_job_for_each_run_that_ends(proxy: Proxy) -> None:
    async with engine(proxy, "a", 10) as one:
        running = [asyncio.create_task(call(proxy, str(number))) for number in range(2)]
        jobs = [await one.job() for _ in running]
        refused = asyncio.create_task(call(proxy, "refused"))
        await refuse(one, await one.job())
        assert await refused == (503, BODY)
        waiting = [asyncio.create_task(call(proxy, "waiting")) for _ in range(3)]
        await until(lambda: len(proxy.parts.interactive) == 5)
        await serve(one, jobs[0])
        following = await one.job()
        # Its engine is full again: as many runs as before.
        assert full(proxy) == ["a"]
        assert len(next(iter(proxy.parts.fleet)).holds) == 2
        proxy.parts.fleet.end_full(math.inf)
        for job in (jobs[1], following, await one.job(), await one.job()):
            await serve(one, job)
        assert {await task for task in running + waiting} == {(200, b"{}")}


@pytest.mark.parametrize(("seconds", "wait"), [(1.0, 1.0), (1e9, FULL_MAX_SECONDS)])
async def test_a_full_engine_gets_a_job_again_after_its_time(
    proxy: Proxy, seconds: float, wait: float
) -> None:
    clock = asyncio.get_running_loop().time
    async with engine(proxy, "a", 1) as one:
        calling = asyncio.create_task(call(proxy))
        job = await one.job()
        before = clock()
        await refuse(one, job, seconds)
        await calling
        [member] = proxy.parts.fleet
        assert before + wait <= member.full_until <= clock() + wait
        if wait > 1:
            return
        calling = asyncio.create_task(call(proxy))
        await serve(one, await one.job())
        assert clock() >= before + wait
        assert await calling == (200, b"{}")


async def test_a_durable_job_waits_for_its_full_engine(proxy: Proxy) -> None:
    queue = QueueClient(proxy)
    async with engine(proxy, "a", 2) as one:
        first = await queue.run({"prompt": "a"})
        running = await one.job()
        second = await queue.run({"prompt": "b"})
        refused = await one.job()
        await one.say(End(refused.job, refused.attempt, "failed", "http_503", "full", 30.0))
        await until(lambda: _is_queued(queue, second))
        assert "takes no further job" in (await queue.status(second))["reason"]
        for job in (running, None):
            taken = job or await one.job()
            await one.say(
                Output(taken.job, taken.attempt, b"1"), End(taken.job, taken.attempt, "completed")
            )
        for job_id in (first, second):
            ended = await queue.end(job_id)
            assert (ended["status"], ended["retries"]) == ("COMPLETED", 0)


async def test_a_job_that_an_idle_engine_always_refuses_fails(proxy: Proxy) -> None:
    queue = QueueClient(proxy)
    async with engine(proxy, "a", 2) as one:
        job_id = await queue.run({"prompt": "a"})
        for _ in range(3):
            job = await one.job()
            await one.say(End(job.job, job.attempt, "failed", "http_503", "full", 30.0))
            await until(lambda: bool(full(proxy)))
            proxy.parts.fleet.end_full(math.inf)
        ended = await queue.end(job_id)
        assert (ended["status"], ended["error"], ended["retries"]) == ("FAILED", "full", 0)


async def test_a_job_that_all_idle_engines_refuse_fails(proxy: Proxy) -> None:
    """Otherwise it would go from one to the other until its time to live is over."""
    queue = QueueClient(proxy)
    refusals = 0

    async def refuse_all(worker: Puppet) -> None:
        nonlocal refusals
        while True:
            run = await worker.job()
            # Before the next refusal, the other engine is not full any more.
            proxy.parts.fleet.end_full(math.inf)
            refusals += 1
            await worker.say(End(run.job, run.attempt, "failed", "http_503", "full", 30.0))

    async with engine(proxy, "a", 2) as first, engine(proxy, "b", 2) as second:
        refusing = [asyncio.create_task(refuse_all(one)) for one in (first, second)]
        ended = await queue.end(await queue.run({"prompt": "a"}))
        assert (ended["status"], ended["error"], refusals) == ("FAILED", "full", 6)
        for task in refusing:
            task.cancel()


async def _is_queued(queue: QueueClient, job_id: str) -> bool:
    return bool((await queue.status(job_id))["status"] == "IN_QUEUE")


ERROR = "{'message': 'vLLM returned HTTP 503: %s', 'type': 'worker_error', 'code': None}"


async def test_a_full_engine_of_a_runpod_worker(proxy: Proxy) -> None:
    async with Raw(proxy) as stock:
        calling = asyncio.create_task(call(proxy))
        job = await stock.next_job()
        await stock.done(job["id"], {"error": ERROR % BODY.decode()})
        assert await calling == (503, BODY)
        polling = asyncio.create_task(stock.take())
        waiting = asyncio.create_task(call(proxy))
        async with engine(proxy, "a", 1) as one:
            await serve(one, await one.job())
            assert await waiting == (200, b"{}")
        assert full(proxy) == [stock.name]
        polling.cancel()
        await asyncio.gather(polling, return_exceptions=True)


@pytest_asyncio.fixture(scope="module")
async def upstream() -> AsyncIterator[UpstreamServer]:
    async with upstream_server() as server:
        yield server


@pytest_asyncio.fixture(scope="module")
async def front(upstream: UpstreamServer) -> AsyncIterator[Proxy]:
    """A proxy whose only worker has an upstream."""
    async with serving() as running, worker(running, upstream=upstream.url):
        yield running


async def ask(front: Proxy, *, stream: bool = False) -> tuple[aiohttp.ClientResponse, Any]:
    request = {"model": MODEL, "messages": [], "stream": stream}
    async with front.http.post(CHAT, json=request) as response:
        is_json = response.content_type == "application/json"
        return response, await (response.json() if is_json else response.text())


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize("status", [429, 503])
async def test_the_client_gets_the_refusal_of_an_upstream(
    front: Proxy, upstream: UpstreamServer, status: int, *, stream: bool
) -> None:
    """`cases/retry-after.json`."""
    fields = {"Retry-After": "7", "retry-after-ms": "6500", "x-should-retry": "true"}
    upstream.answers.append(refusal(status, "rate_limit_exceeded", **fields))
    before = asyncio.get_running_loop().time()
    response, answer = await ask(front, stream=stream)
    assert response.status == status
    assert {name: response.headers[name] for name in fields} == fields
    assert answer["error"]["code"] == "rate_limit_exceeded"
    [member] = front.parts.fleet
    assert member.full_until >= before + 7
    front.parts.fleet.end_full(math.inf)


async def test_an_exhausted_quota_does_not_make_the_worker_full(
    front: Proxy, upstream: UpstreamServer
) -> None:
    upstream.answers.append(refusal(429, "insufficient_quota", Retry_After="60"))
    response, answer = await ask(front)
    assert (response.status, answer["error"]["code"]) == (429, "insufficient_quota")
    assert full(front) == []
    assert (await ask(front))[0].status == 200
