"""A reader of a queued job, also between two runs, gets the complete output and final status."""

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
    """A client of a memory store, which never awaits: a job ends in one step."""
    async with serving(store="memory:") as proxy:
        yield QueueClient(proxy)


async def consumed(queue: QueueClient, job: str) -> tuple[str, list[Any]]:
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
READS: list[Read] = [consumed, read_from_the_start, events, awaited]


async def finish(worker: Puppet, job: str) -> None:
    """Run the job: the worker sends its output and end in one message."""
    offered = await worker.job()
    assert offered.job == job
    await worker.say(
        *(Output(job, offered.attempt, piece) for piece in PIECES),
        End(job, offered.attempt, "completed"),
    )


async def reading(
    queue: QueueClient, job: str, read: Read
) -> "asyncio.Task[tuple[str, list[Any]]]":
    """Start a reader and return when it waits."""
    followers = len(queue.proxy.parts.events)
    task = asyncio.create_task(read(queue, job))
    await until(lambda: len(queue.proxy.parts.events) > followers, what="it waits")
    return task


@pytest.mark.parametrize("read", READS)
async def test_a_reader_of_a_queued_job_gets_the_complete_output(
    quick: QueueClient, read: Read
) -> None:
    job = await quick.run(1)
    waiting = await reading(quick, job, read)
    async with puppet(quick.proxy, slots=1) as worker:
        await finish(worker, job)
        assert await waiting == ("COMPLETED", WHOLE)


@pytest.mark.parametrize("read", READS)
async def test_a_reader_of_a_released_job_gets_the_complete_output(
    quick: QueueClient, read: Read
) -> None:
    job = await quick.run(1)
    async with puppet(quick.proxy, slots=1) as worker:
        first = await worker.job()
        waiting = await reading(quick, job, read)
        await worker.say(End(job, first.attempt, "released"))
        await finish(worker, job)
        assert await waiting == ("COMPLETED", WHOLE)


@pytest.mark.parametrize("read", READS)
async def test_a_reader_of_a_retried_job_gets_the_complete_output(
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
