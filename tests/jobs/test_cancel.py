"""`cancel` ends a job in any status, and is idempotent."""

import pytest
from harness.proxy.queue_api import QueueClient, long, prompt
from harness.proxy.shared import Line
from harness.tools.waiting import until
from harness.worker.process import worker


async def test_cancelling_a_queued_job_removes_it_from_the_queue(alone: QueueClient) -> None:
    job = await alone.run(1)
    for _ in range(2):
        answer = await alone.call("POST", f"cancel/{job}")
        assert (answer.status, answer.body) == (200, {"id": job, "status": "CANCELLED"})
    status = await alone.status(job)
    assert status["status"] == "CANCELLED"
    assert "error" not in status.body
    assert (await alone.call("GET", "health"))["jobs"]["inQueue"] == 0


@pytest.mark.parametrize("stream", [True, False])
async def test_cancelling_a_running_job_frees_its_worker(
    queue: QueueClient, line: Line, stream: bool
) -> None:
    job = await queue.run(long() | {"stream": stream})
    await until(lambda: _running(line, 1), what="the engine runs the job")
    assert (await queue.call("POST", f"cancel/{job}"))["status"] == "CANCELLED"
    await until(lambda: _running(line, 0), 1.0, "it is idle")
    assert (await queue.status(job))["status"] == "CANCELLED"


async def _running(line: Line, wanted: int) -> bool:
    counts = [await one.metric(line.proxy.http, "num_requests_running") for one in line.workers]
    return sum(counts) == wanted


async def test_a_finished_job_keeps_its_status(queue: QueueClient) -> None:
    job = await queue.run(prompt())
    await queue.end(job)
    answer = await queue.call("POST", f"cancel/{job}")
    assert (answer.status, answer["status"]) == (200, "COMPLETED")


async def test_an_unknown_job_is_404(queue: QueueClient) -> None:
    assert (await queue.call("POST", "cancel/nonsense")).status == 404


async def test_get_is_rejected(queue: QueueClient) -> None:
    answer = await queue.call("GET", "cancel/x")
    assert answer.status == 405
    assert answer.headers["allow"] == "POST"
    assert list(answer.body) == ["error"]


async def test_a_cancelled_job_is_never_handed_out(alone: QueueClient) -> None:
    jobs = [await alone.run(prompt()) for _ in range(5)]
    await alone.call("POST", f"cancel/{jobs[2]}")
    async with worker(alone.proxy):
        for job in jobs:
            await alone.end(job)
    statuses = [(await alone.status(job))["status"] for job in jobs]
    assert statuses == ["COMPLETED", "COMPLETED", "CANCELLED", "COMPLETED", "COMPLETED"]
