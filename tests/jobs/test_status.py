"""`status` and `status-sync`: state, times, reason for waiting, and retention of a job."""

import asyncio
from functools import partial

import pytest
from harness.data.clock import FakeClock
from harness.proxy.queue_api import QueueClient, long, prompt
from harness.tools.waiting import until
from harness.worker.process import worker


async def test_an_ended_job_has_all_fields(queue: QueueClient) -> None:
    ended = await queue.end(await queue.run(prompt()))
    assert set(ended.body) == {
        "id",
        "status",
        "output",
        "delayTime",
        "executionTime",
        "retries",
        "workerId",
    }
    assert all(type(ended[name]) is int for name in ("delayTime", "executionTime", "retries"))


async def test_get_and_post_are_equivalent(queue: QueueClient) -> None:
    job = await queue.run(prompt())
    for operation in ("status", "status-sync"):
        assert (await queue.call("POST", f"{operation}/{job}")).status == 200


async def test_a_streamed_output_is_the_list_of_its_elements(queue: QueueClient) -> None:
    ended = await queue.end(await queue.run(prompt("a", stream=True)))
    assert [element["text"] for element in ended["output"]] == [["a 0 "], ["a 1 "], ["a 2 "]]


async def test_a_queued_job_has_a_reason(alone: QueueClient) -> None:
    first, second = await alone.run(long()), await alone.run(long())
    assert (await alone.status(first))["reason"] == "No worker is connected."
    async with worker(alone.proxy, max_concurrency=1):
        await until(lambda: _is(alone, first, "IN_PROGRESS"), what="the first one runs")
        assert (await alone.status(second))[
            "reason"
        ] == "Held by a limit: the only slot of 1 worker is taken."
        third = await alone.run(1)
        assert (await alone.status(third))["reason"] == "Behind 1 job in the queue."
        assert "reason" not in (await alone.status(first)).body


async def test_a_queued_job_of_low_priority_has_its_own_reason(
    timed: QueueClient, clock: FakeClock
) -> None:
    first = "Jobs of normal priority go first until it has waited for 60 s."
    async with worker(timed.proxy, max_concurrency=1), worker(timed.proxy, max_concurrency=1):
        running = [await timed.run(long()) for _ in range(2)]
        for job in running:
            await until(partial(_is, timed, job, "IN_PROGRESS"), what="it runs")
        low = await timed.run(1, policy={"lowPriority": True})
        taken = "Held by a limit: all 2 slots of 2 workers are taken."
        assert (await timed.status(low))["reason"] == f"{taken} {first}"
        await timed.run(1)
        assert (await timed.status(low))["reason"] == f"Behind 1 job in the queue. {first}"
        clock.pass_time(61)
        assert (await timed.status(low))["reason"] == "Behind 1 job in the queue."


async def _is(queue: QueueClient, job: str, status: str) -> bool:
    return bool((await queue.status(job))["status"] == status)


async def test_status_sync_waits_for_the_end(queue: QueueClient) -> None:
    job = await queue.run(prompt(max_tokens=20, seed=20_000))
    assert (await queue.call("GET", f"status-sync/{job}?wait=20000"))["status"] == "COMPLETED"


async def test_status_sync_returns_after_its_timeout(alone: QueueClient) -> None:
    job = await alone.run(1)
    assert (await alone.call("GET", f"status-sync/{job}?wait=1000"))["status"] == "IN_QUEUE"


@pytest.mark.parametrize(
    "job", ["nonsense", "00000000-0000-0000-0000-000000000000-u1", "x" * 500, "%00", "a%2Fb"]
)
async def test_an_unknown_job_is_404(queue: QueueClient, job: str) -> None:
    for operation in ("status", "status-sync", "stream"):
        answer = await queue.call("GET", f"{operation}/{job}")
        assert answer.status == 404
        assert list(answer.body) == ["error"]


async def test_a_result_is_kept_for_half_an_hour(timed: QueueClient, clock: FakeClock) -> None:
    async with worker(timed.proxy):
        job = await timed.run(prompt())
        await timed.end(job)
    clock.pass_time(29 * 60)
    assert (await timed.status(job)).status == 200
    clock.pass_time(61)
    await until(lambda: _gone(timed, job), what="it is deleted")


async def _gone(queue: QueueClient, job: str) -> bool:
    return (await queue.status(job)).status == 404


@pytest.mark.parametrize(("wait", "seconds"), [("", 90), ("?wait=1000", 60), ("?wait=300000", 300)])
async def test_the_result_of_runsync_is_kept_as_long_as_its_wait(
    timed: QueueClient, clock: FakeClock, wait: str, seconds: int
) -> None:
    async with worker(timed.proxy):
        job = (await timed.call("POST", f"runsync{wait}", json={"input": prompt()}))["id"]
    clock.pass_time(seconds - 1)
    assert (await timed.status(job)).status == 200
    clock.pass_time(2)
    await until(lambda: _gone(timed, job), what="it is deleted")


async def test_ttl_ends_a_queued_job(timed: QueueClient, clock: FakeClock) -> None:
    job = await timed.run(1)
    assert (await timed.status(job, "?ttl=6000"))["status"] == "IN_QUEUE"
    clock.pass_time(5)
    assert (await timed.status(job))["status"] == "IN_QUEUE"
    clock.pass_time(2)
    await until(lambda: _is(timed, job, "TIMED_OUT"), what="it has timed out")
    assert "time to live" in (await timed.status(job))["error"]


async def test_ttl_deletes_an_ended_job(timed: QueueClient, clock: FakeClock) -> None:
    async with worker(timed.proxy):
        job = await timed.run(prompt())
        await timed.end(job)
    assert (await timed.status(job, "?ttl=1000")).status == 200
    clock.pass_time(2)
    await until(lambda: _gone(timed, job), what="it is deleted")


@pytest.mark.parametrize("ttl", ["999", "604800001", "soon", "-1", "1.5"])
async def test_a_ttl_out_of_range_is_rejected(alone: QueueClient, ttl: str) -> None:
    job = await alone.run(1)
    answer = await alone.status(job, f"?ttl={ttl}")
    assert answer.status == 400
    assert "ttl" in answer["error"]


async def test_the_default_ttl_is_a_day(timed: QueueClient, clock: FakeClock) -> None:
    short, usual = await timed.run(1, policy={"ttl": 10_000}), await timed.run(1)
    clock.pass_time(11)
    await until(lambda: _is(timed, short, "TIMED_OUT"), what="ten seconds are over")
    clock.pass_time(24 * 3600 - 30)
    assert (await timed.status(usual))["status"] == "IN_QUEUE"
    clock.pass_time(30)
    await until(lambda: _is(timed, usual, "TIMED_OUT"), what="a day is over")


async def test_a_job_that_exceeds_its_execution_timeout_is_stopped(
    timed: QueueClient, clock: FakeClock
) -> None:
    async with worker(timed.proxy) as one:
        job = await timed.run(long(), policy={"executionTimeout": 5000})
        await until(lambda: _is(timed, job, "IN_PROGRESS"), what="it runs")
        clock.pass_time(6)
        await until(lambda: _is(timed, job, "TIMED_OUT"), what="it has timed out")
        await until(lambda: _idle(one, timed), 3.0, "the engine is idle")
    assert "longer than 5 seconds" in (await timed.status(job))["error"]


async def _idle(one: object, queue: QueueClient) -> bool:
    return await one.metric(queue.proxy.http, "num_requests_running") == 0  # type: ignore[attr-defined,no-any-return]


async def test_many_clients_wait_for_one_job(queue: QueueClient) -> None:
    job = await queue.run(prompt(max_tokens=10, seed=20_000))
    answers = await asyncio.gather(*(queue.call("GET", f"status-sync/{job}") for _ in range(20)))
    assert {answer["status"] for answer in answers} == {"COMPLETED"}
