"""`purge-queue` cancels exactly the queued jobs; running jobs continue."""

import asyncio

from harness.proxy.queue_api import QueueClient, long, prompt
from harness.proxy.server import serving
from harness.tools.waiting import until
from harness.worker.process import worker


async def test_all_queued_jobs_are_cancelled(alone: QueueClient) -> None:
    jobs = [await alone.run(1) for _ in range(3)]
    assert (await alone.call("POST", "purge-queue")).body == {"removed": 3, "status": "completed"}
    assert {(await alone.status(job))["status"] for job in jobs} == {"CANCELLED"}


async def test_running_jobs_continue(alone: QueueClient) -> None:
    async with worker(alone.proxy, max_concurrency=1):
        running = await alone.run(prompt(max_tokens=30, seed=20_000))
        await until(lambda: _is(alone, running, "IN_PROGRESS"), what="it runs")
        waiting = await alone.run(1)
        assert (await alone.call("POST", "purge-queue"))["removed"] == 1
        assert (await alone.end(running))["status"] == "COMPLETED"
        assert (await alone.status(waiting))["status"] == "CANCELLED"


async def _is(queue: QueueClient, job: str, status: str) -> bool:
    return bool((await queue.status(job))["status"] == status)


async def test_a_job_is_purged_or_handed_out_never_both(alone: QueueClient) -> None:
    jobs = [await alone.run(prompt()) for _ in range(100)]
    async with worker(alone.proxy, max_concurrency=3):
        removed = (await alone.call("POST", "purge-queue"))["removed"]
        ended = await asyncio.gather(*(alone.end(job) for job in jobs))
    statuses = [answer["status"] for answer in ended]
    assert statuses.count("CANCELLED") == removed
    assert statuses.count("COMPLETED") == 100 - removed


async def test_jobs_of_other_owners_stay() -> None:
    async with serving(api_key=["alice=one", "bob=two"]) as proxy:
        alice, bob = QueueClient(proxy, "one"), QueueClient(proxy, "Bearer two")
        hers, his = await alice.run(long()), await bob.run(long())
        assert (await bob.call("POST", "purge-queue"))["removed"] == 1
        assert (await alice.status(hers))["status"] == "IN_QUEUE"
        assert (await bob.status(his))["status"] == "CANCELLED"


async def test_one_valid_authorization_header_of_two_is_enough() -> None:
    async with serving(api_key=["alice=one"]) as proxy:
        headers = [("Authorization", "one"), ("Authorization", "Bearer RUNPOD_API_KEY")]
        async with proxy.http.post("/v2/default/purge-queue", headers=headers) as response:
            assert response.status == 200
