"""`retry` submits a failed job again, with the same id, input and policy."""

import pytest
from harness.data.clock import FakeClock
from harness.proxy.queue_api import QueueClient, prompt
from harness.tools.waiting import until
from harness.worker.process import worker

BROKEN = {
    "openai_route": "/v1/completions",
    "openai_input": {"prompt": "x", "stream": True, "fault": "error_event:1"},
}


async def test_a_failed_job_runs_again_from_its_input(queue: QueueClient) -> None:
    job = await queue.run(BROKEN)
    failed = await queue.end(job)
    assert failed["status"] == "FAILED"
    assert failed["output"]
    answer = await queue.call("POST", f"retry/{job}")
    assert (answer.status, answer.body) == (200, {"id": job, "status": "IN_QUEUE"})
    again = await queue.end(job)
    assert again["status"] == "FAILED"
    assert len(again["output"]) == len(failed["output"])
    assert (await queue.call("GET", "health"))["jobs"]["retried"] >= 1


async def test_a_retry_deletes_the_earlier_output(timed: QueueClient) -> None:
    async with worker(timed.proxy):
        job = await timed.run(BROKEN)
        await timed.end(job)
    await timed.stream(job)
    await timed.call("POST", f"retry/{job}")
    status = await timed.status(job)
    assert status["status"] == "IN_QUEUE"
    assert not {"output", "error"} & set(status.body)
    assert (await timed.stream(job, "?wait=1000")).body == {"status": "IN_QUEUE", "stream": []}


async def test_a_retry_restarts_the_time_to_live(timed: QueueClient, clock: FakeClock) -> None:
    job = await timed.run(1, policy={"ttl": 10_000})
    clock.pass_time(11)
    await until(lambda: _is(timed, job, "TIMED_OUT"), what="its time to live has ended")
    await timed.call("POST", f"retry/{job}")
    clock.pass_time(9)
    assert (await timed.status(job))["status"] == "IN_QUEUE"
    clock.pass_time(2)
    await until(lambda: _is(timed, job, "TIMED_OUT"), what="its time to live has ended again")


async def _is(queue: QueueClient, job: str, status: str) -> bool:
    return bool((await queue.status(job))["status"] == status)


async def test_only_failed_and_timed_out_jobs_can_be_retried(
    queue: QueueClient, alone: QueueClient
) -> None:
    done, waiting, cancelled = await queue.run(prompt()), await alone.run(1), await alone.run(1)
    await queue.end(done)
    await alone.call("POST", f"cancel/{cancelled}")
    for client, job, status in (
        (queue, done, "COMPLETED"),
        (alone, waiting, "IN_QUEUE"),
        (alone, cancelled, "CANCELLED"),
    ):
        answer = await client.call("POST", f"retry/{job}")
        assert answer.status == 409
        assert answer["error"].endswith(f"this one is {status}.")


@pytest.mark.parametrize("job", ["nonsense", "x" * 300])
async def test_an_unknown_job_is_404(queue: QueueClient, job: str) -> None:
    assert (await queue.call("POST", f"retry/{job}")).status == 404
