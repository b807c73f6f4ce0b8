"""A reader that asks while its job waits, or between two runs of it, gets the whole output with the final status."""

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest
import pytest_asyncio
from harness.proxy.queue_api import QueueClient
from harness.proxy.server import serving
from harness.tools.waiting import until
from harness.worker.puppet import Puppet, puppet

from proxy.wire.frames import End, Output

PIECES = [b"1", b"2", b"3"]
WHOLE = [{"output": 1}, {"output": 2}, {"output": 3}]


@pytest_asyncio.fixture
async def quick() -> AsyncIterator[QueueClient]:
    """An endpoint whose store awaits nothing: a job that ends in one message is never seen between two steps."""
    async with serving(store="memory:") as proxy:
        yield QueueClient(proxy)


async def drained(queue: QueueClient, job: str) -> tuple[str, list[Any]]:
    answer = await queue.stream(job, "?wait=20000")
    return answer["status"], answer["stream"]


async def read_from_the_start(queue: QueueClient, job: str) -> tuple[str, list[Any]]:
    answer = await queue.stream(job, "?wait=20000&after=0")
    return answer["status"], answer["stream"]


async def events(queue: QueueClient, job: str) -> tuple[str, list[Any]]:
    accept = {"Accept": "text/event-stream"}
    async with queue.proxy.http.get(f"/v2/default/stream/{job}", headers=accept) as response:
        text = await response.text()
    *elements, end = [
        json.loads(line[6:]) for line in text.splitlines() if line.startswith("data: ")
    ]
    return end["status"], elements


async def awaited(queue: QueueClient, job: str) -> tuple[str, list[Any]]:
    answer = await queue.call("GET", f"status-sync/{job}?wait=20000")
    return answer["status"], [{"output": one} for one in answer["output"]]


Read = Callable[[QueueClient, str], Awaitable[tuple[str, list[Any]]]]
READS: list[Read] = [drained, read_from_the_start, events, awaited]


async def finish(worker: Puppet, job: str) -> None:
    """The worker runs the job, all in one message."""
    offered = await worker.job()
    assert offered.job == job
    await worker.say(
        *(Output(job, offered.attempt, piece) for piece in PIECES),
        End(job, offered.attempt, "completed"),
    )


async def reading(
    queue: QueueClient, job: str, read: Read
) -> "asyncio.Task[tuple[str, list[Any]]]":
    """A reader that waits."""
    followers = len(queue.proxy.parts.events)
    task = asyncio.create_task(read(queue, job))
    await until(lambda: len(queue.proxy.parts.events) > followers, what="it waits")
    return task


@pytest.mark.parametrize("read", READS)
async def test_a_job_that_was_queued_when_it_was_asked(quick: QueueClient, read: Read) -> None:
    job = await quick.run(1)
    waiting = await reading(quick, job, read)
    async with puppet(quick.proxy, slots=1) as worker:
        await finish(worker, job)
        assert await waiting == ("COMPLETED", WHOLE)


@pytest.mark.parametrize("read", READS)
async def test_a_job_that_was_handed_back_before_it_ran(quick: QueueClient, read: Read) -> None:
    job = await quick.run(1)
    async with puppet(quick.proxy, slots=1) as worker:
        first = await worker.job()
        waiting = await reading(quick, job, read)
        await worker.say(End(job, first.attempt, "released"))
        await finish(worker, job)
        assert await waiting == ("COMPLETED", WHOLE)


@pytest.mark.parametrize("read", READS)
async def test_a_job_that_was_retried_after_its_output_was_drained(
    quick: QueueClient, read: Read
) -> None:
    job = await quick.run(1)
    async with puppet(quick.proxy, slots=1) as worker:
        first = await worker.job()
        failed = End(job, first.attempt, "failed", "engine_error", "no")
        await worker.say(Output(job, first.attempt, b"0"), Output(job, first.attempt, b"0"), failed)
        assert (await quick.end(job))["status"] == "FAILED"
        assert len((await quick.stream(job))["stream"]) == 2
    assert (await quick.call("POST", f"retry/{job}")).status == 200
    waiting = await reading(quick, job, read)
    async with puppet(quick.proxy, slots=1) as worker:
        await finish(worker, job)
        assert await waiting == ("COMPLETED", WHOLE)
