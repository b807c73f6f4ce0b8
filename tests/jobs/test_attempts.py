"""Readers are bound to one attempt: no client receives output of two runs of a job."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import aiohttp
import pytest
from harness.data.jobs import HERE
from harness.data.store_steps import RUN
from harness.proxy.queue_api import QueueClient
from harness.proxy.server import Proxy
from harness.tools.waiting import until
from harness.worker.puppet import Puppet, hello, puppet

from proxy.jobs.lifecycle import Event
from proxy.jobs.model import JobId, WorkerId
from proxy.system import SystemClock
from proxy.wire.frames import Credit, End, Hold, Job, Output

EVENTS = {"Accept": "text/event-stream"}
MINUTE = aiohttp.ClientTimeout(60)


@pytest.fixture
def queue(proxy: Proxy) -> QueueClient:
    return QueueClient(proxy)


@asynccontextmanager
async def events(
    queue: QueueClient, job: str, **headers: str
) -> AsyncIterator[aiohttp.ClientResponse]:
    """Read a job's output as server-sent events."""
    url = f"/v2/default/stream/{job}"
    async with queue.proxy.http.get(url, headers=EVENTS | headers, timeout=MINUTE) as response:
        yield response


async def line(response: aiohttp.ClientResponse) -> str:
    """Return the next line of an event stream that is not empty."""
    while not (found := (await response.content.readline()).decode().strip()):
        assert not response.content.at_eof()
    return found


async def take(worker: Puppet, job: str) -> Job:
    offered = await worker.job()
    assert offered.job == job
    return offered


def outputs(run: Job, *texts: str) -> list[Output]:
    return [Output(run.job, run.attempt, json.dumps(text).encode()) for text in texts]


async def written(queue: QueueClient, job: str, number: int) -> None:
    """Wait until a number of elements is in the store."""
    parts = queue.proxy.parts
    with parts.events.subscribe(JobId(job)) as changes:
        while len((await parts.store.read(JobId(job), 0, 99))[0]) < number:
            assert await changes.wait(10)


async def orphaned(queue: QueueClient) -> str:
    """Submit a job that ran on `w-puppet` when the proxy was started; return its id."""
    parts = queue.proxy.parts
    job = await queue.run(1)
    taken = await parts.store.take(
        HERE, WorkerId("w-puppet"), limit=1, light_limit=0, now=SystemClock().now(), run=RUN
    )
    parts.orphans.find(taken)
    return job


# Event streams and cursors


async def test_a_stream_restarts_if_its_attempt_was_lost_before_any_output(
    queue: QueueClient,
) -> None:
    job = await queue.run(1)
    # The reader names the attempt, so that it does not matter when its stream is read first.
    cursor = {"last-event-id": "1-0"}
    async with puppet(queue.proxy, slots=1) as worker, events(queue, job, **cursor) as stream:
        first = await take(worker, job)
        await worker.say(End(job, first.attempt, "lost"))
        second = await take(worker, job)
        await worker.say(*outputs(second, "a", "b"), End(job, second.attempt, "completed"))
        lines = [await line(stream) for _ in range(7)]
    assert lines == [
        ": restarted attempt=2",
        "id: 2-1",
        'data: {"output":"a"}',
        "id: 2-2",
        'data: {"output":"b"}',
        "event: end",
        'data: {"status":"COMPLETED"}',
    ]


async def test_a_job_of_which_a_stream_was_read_does_not_run_again(queue: QueueClient) -> None:
    job = await queue.run(1)
    async with puppet(queue.proxy, slots=1) as worker, events(queue, job) as stream:
        run = await take(worker, job)
        await worker.say(*outputs(run, "first"))
        assert [await line(stream), await line(stream)] == ["id: 1-1", 'data: {"output":"first"}']
        await worker.say(End(job, run.attempt, "lost"))
        assert [await line(stream), await line(stream)] == [
            "event: end",
            'data: {"status":"FAILED"}',
        ]
    assert (await queue.status(job))["error"] == "The worker that ran this was lost."


async def test_a_job_that_was_read_with_a_cursor_does_not_run_again(queue: QueueClient) -> None:
    job = await queue.run(1)
    async with puppet(queue.proxy, slots=1) as worker:
        run = await take(worker, job)
        await worker.say(*outputs(run, "first"))
        await written(queue, job, 1)
        page = await queue.stream(job, "?after=0&wait=5000")
        assert (page["stream"], page["next"]) == ([{"output": "first"}], "1-1")
        await worker.say(End(job, run.attempt, "lost"))
        page = await queue.stream(job, "?after=1-1&wait=5000")
    assert (page["status"], page["stream"], page["next"]) == ("FAILED", [], "1-1")


async def test_a_cursor_of_an_earlier_attempt_begins_with_the_present_one(
    queue: QueueClient,
) -> None:
    job = await queue.run(1)
    async with puppet(queue.proxy, slots=1) as worker:
        run = await take(worker, job)
        failed = End(job, run.attempt, "failed", "engine_error", "no")
        await worker.say(*outputs(run, "a", "b", "c"), failed)
        assert (await queue.end(job))["status"] == "FAILED"
        assert (await queue.stream(job, "?after=0"))["next"] == "1-3"
        assert (await queue.call("POST", f"retry/{job}")).status == 200
        again = await take(worker, job)
        await worker.say(*outputs(again, "x"), End(job, again.attempt, "completed"))
        assert (await queue.end(job))["status"] == "COMPLETED"
    page = await queue.stream(job, "?after=1-3")
    assert (page["stream"], page["next"]) == ([{"output": "x"}], "2-1")
    # A number is a cursor of the previous release: of the current attempt.
    assert (await queue.stream(job, "?after=1"))["stream"] == []


@pytest.mark.parametrize("cursor", ["-1", "1-", "a-1", "1-2-3", "1.5", "9" * 20])
async def test_an_invalid_cursor_is_rejected(queue: QueueClient, cursor: str) -> None:
    job = await queue.run(1)
    assert (await queue.stream(job, f"?after={cursor}")).status == 400
    answer = await queue.call("GET", f"stream/{job}", headers=EVENTS | {"Last-Event-ID": cursor})
    assert answer.status == 400


# Races


async def test_no_client_receives_output_of_two_runs(queue: QueueClient) -> None:
    """Output is consumed in the moment in which its run is lost."""
    seen: list[tuple[str, list[Any]]] = []

    async def consume(job: str) -> None:
        texts: list[Any] = []
        while True:
            answer = await queue.stream(job, "?wait=1000")
            texts += [element["output"] for element in answer["stream"]]
            if answer["status"] in {"COMPLETED", "FAILED"}:
                seen.append((answer["status"], texts))
                return

    async with puppet(queue.proxy, slots=1) as worker:
        for _ in range(40):
            job = await queue.run(1)
            run = await take(worker, job)
            await worker.say(*outputs(run, "first"))
            await written(queue, job, 1)
            reading = asyncio.create_task(consume(job))
            await worker.say(End(job, run.attempt, "lost"))
            finished = asyncio.create_task(take(worker, job))
            await asyncio.wait({reading, finished}, return_when=asyncio.FIRST_COMPLETED)
            if finished.done():
                again = finished.result()
                await worker.say(*outputs(again, "second"), End(job, again.attempt, "completed"))
            finished.cancel()
            await asyncio.gather(finished, return_exceptions=True)
            await reading
    assert all(texts in ([["first"], ["second"]]) for _, texts in seen), seen
    assert all(status == "COMPLETED" for status, texts in seen if texts == ["second"])


async def test_output_is_not_consumed_for_a_client_that_has_left(queue: QueueClient) -> None:
    job = await queue.run(1)
    events_of = queue.proxy.parts.events
    async with puppet(queue.proxy, slots=1) as worker:
        run = await take(worker, job)
        before = len(events_of)
        leaving = asyncio.create_task(queue.stream(job, "?wait=90000"))
        await until(lambda: len(events_of) > before, what="it waits")
        leaving.cancel()
        await asyncio.gather(leaving, return_exceptions=True)
        await until(lambda: len(events_of) == before, what="the proxy has noticed")
        await worker.say(*outputs(run, "kept"), End(job, run.attempt, "completed"))
        await queue.end(job)
    assert (await queue.stream(job))["stream"] == [{"output": "kept"}]


# Runs from before a restart


async def test_a_worker_does_not_resume_a_run_that_was_cancelled(queue: QueueClient) -> None:
    job = await orphaned(queue)
    await queue.call("POST", f"cancel/{job}")
    async with puppet(queue.proxy, hello(holds=[Hold(job, 1, 0)]), Credit(1, 0)) as worker:
        stop = await worker.stopped()
        assert (stop.job, stop.attempt) == (job, 1)
        await worker.say(Output(job, 1, b'"late"'), End(job, 1, "completed"))
        assert (await queue.status(job))["status"] == "CANCELLED"
        assert not any(each.holds for each in queue.proxy.parts.fleet)


async def test_an_old_run_does_not_harm_a_newer_one(queue: QueueClient) -> None:
    """A job has timed out and was retried before the worker of its first run is back."""
    job = await orphaned(queue)
    parts = queue.proxy.parts
    assert await parts.store.settle(JobId(job), Event.EXPIRE, now=SystemClock().now())
    assert (await queue.call("POST", f"retry/{job}")).status == 200
    async with puppet(queue.proxy, hello("w-other"), Credit(1, 0)) as other:
        run = await take(other, job)
        assert run.attempt == 2
        await other.say(*outputs(run, "a", "b"))
        await written(queue, job, 2)
        async with puppet(queue.proxy, hello(holds=[Hold(job, 1, 0)]), Credit(0, 0)) as worker:
            assert (await worker.stopped()).attempt == 1
            await worker.say(Output(job, 1, b'"late"'), End(job, 1, "completed"))
            await other.say(*outputs(run, "c"), End(job, 2, "completed"))
            ended = await queue.end(job)
    assert (ended["status"], ended["output"]) == ("COMPLETED", ["a", "b", "c"])


async def test_a_worker_resumes_a_run_that_goes_on(queue: QueueClient) -> None:
    job = await orphaned(queue)
    async with puppet(queue.proxy, hello(holds=[Hold(job, 1, 0)]), Credit(1, 0)) as worker:
        await until(lambda: any(each.holds for each in queue.proxy.parts.fleet), what="it holds")
        await worker.say(Output(job, 1, b'"text"'), End(job, 1, "completed"))
        assert (await queue.end(job))["output"] == ["text"]
    resumed = await queue.proxy.parts.store.find(JobId(job))
    assert resumed is not None
    # The run was continued under a new number.
    assert (resumed.attempt, resumed.run != RUN) == (1, True)
