"""The job of a client that disconnects after the complete response is COMPLETED."""

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import pytest
import pytest_asyncio
from harness.data.clock import FakeClock
from harness.network.raw_http import request, wire
from harness.proxy.server import CHAT, Proxy, chat, serving
from harness.proxy.shared import Line
from harness.tools.waiting import until
from harness.worker.puppet import Puppet, puppet

from proxy.jobs import model
from proxy.jobs.model import EndpointId
from proxy.wire.frames import Chunk, End, Head, Job

EVENTS = "text/event-stream; charset=utf-8"
RESPONSES, MESSAGES = "/v1/responses", "/v1/messages"
DONE = b"data: [DONE]\n\n"
FIRST = b'data: {"a": 1}\n\n'
STOP = b'event: message_stop\ndata: {"type":"message_stop"}\n\n'
FILLER = b"x" * 400_000
DAY_SECONDS = 86_400.0


def response(name: bytes, text: bytes = b"") -> bytes:
    return b'event: response.%b\ndata: {"text":"%b"}\n\n' % (name, text)


ENDS: dict[str, tuple[str, list[bytes], str]] = {
    "chat": (CHAT, [FIRST, DONE], "COMPLETED"),
    "chat, in one piece": (CHAT, [FIRST + DONE], "COMPLETED"),
    "chat of another engine": (CHAT, [FIRST, b"data:[DONE]\r\n\r\n"], "COMPLETED"),
    "completed": (RESPONSES, [response(b"created"), response(b"completed")], "COMPLETED"),
    "incomplete": (RESPONSES, [response(b"incomplete")], "COMPLETED"),
    "failed": (RESPONSES, [response(b"failed")], "FAILED"),
    "message": (MESSAGES, [b"event: message_start\ndata: {}\n\n", STOP], "COMPLETED"),
    "error in a chat": (CHAT, [FIRST, b'data: {"error": {"message": "no"}}\n\n'], "FAILED"),
    "error in a message": (MESSAGES, [b"event: error\ndata: {}\n\n"], "FAILED"),
}
NOT_YET: dict[str, tuple[str, list[bytes]]] = {
    "nothing": (CHAT, [FIRST]),
    "a text about it": (CHAT, [FIRST + b'data: {"text": "data: [DONE]"}\n\n']),
    "something after it": (CHAT, [DONE, FIRST]),
    "an error that is none": (CHAT, [b'data: {"error": null, "a": 1}\n\n']),
    "half of it": (RESPONSES, [response(b"completed", FILLER)[:-1]]),
    "another event": (RESPONSES, [response(b"in_progress")]),
}


@pytest_asyncio.fixture(scope="module")
async def shared() -> AsyncIterator[Proxy]:
    """A proxy without workers."""
    async with serving() as proxy:
        yield proxy


def call(path: str, body: Any) -> bytes:
    data = json.dumps(body).encode()
    return request(
        f"POST {path}", "Content-Type: application/json", f"Content-Length: {len(data)}", body=data
    )


async def begin(worker: Puppet, events: list[bytes], *, is_open: bool = False) -> Job:
    """Take the next job as the worker and send `events`, the large ones in parts."""
    job = await worker.job()
    await worker.say(Head(job.job, job.attempt, 200, EVENTS))
    for event in events:
        parts = [event[start : start + 64_000] for start in range(0, len(event), 64_000)]
        for part in parts[:-1]:
            await worker.say(Chunk(job.job, job.attempt, part, more=True))
        await worker.say(Chunk(job.job, job.attempt, parts[-1], more=is_open))
    return job


async def leave_after(
    proxy: Proxy, worker: Puppet, path: str, events: list[bytes], *, is_open: bool = False
) -> Job:
    """Send `events` to a client that disconnects before the worker ends the run."""
    async with wire(proxy) as client:
        await client.send(call(path, {"model": "m", "stream": True}))
        job = await begin(worker, events, is_open=is_open)
        await client.heard(events[-1][-64:])
        [mailbox] = list(proxy.parts.interactive)
    await until(lambda: mailbox.abandoned, what="the proxy knows that the client has left")
    return job


async def status(proxy: Proxy, job: Job) -> str:
    async with proxy.http.get(f"/v2/default/status/{job.job}") as answer:
        return str((await answer.json())["status"])


async def counts(proxy: Proxy) -> dict[str, int]:
    """Return the numbers of ended jobs: two from `health`, the cancelled ones from the store."""
    async with proxy.http.get("/v2/default/health") as answer:
        found: dict[str, int] = (await answer.json())["jobs"]
    cancelled = (await proxy.parts.view.counts(EndpointId("default"))).cancelled
    return {"completed": found["completed"], "failed": found["failed"], "cancelled": cancelled}


async def assert_ended(proxy: Proxy, job: Job, wanted: str) -> None:
    await until(lambda: not len(proxy.parts.interactive), what="the call is over")
    assert await status(proxy, job) == wanted


@pytest.mark.parametrize("case", ENDS)
async def test_the_end_of_the_run_sets_the_status_after_the_last_event(
    shared: Proxy, case: str
) -> None:
    path, events, wanted = ENDS[case]
    before = await counts(shared)
    async with puppet(shared, slots=1) as worker:
        job = await leave_after(shared, worker, path, events)
        assert await status(shared, job) == "IN_PROGRESS"
        await worker.say(End(job.job, job.attempt, "failed" if wanted == "FAILED" else "completed"))
        await assert_ended(shared, job, wanted)
    assert await counts(shared) == before | {wanted.lower(): before[wanted.lower()] + 1}


async def test_the_last_event_may_arrive_in_parts(shared: Proxy) -> None:
    async with puppet(shared, slots=1) as worker:
        job = await leave_after(
            shared, worker, RESPONSES, [response(b"created"), response(b"completed", FILLER)]
        )
        await worker.say(End(job.job, job.attempt, "completed"))
        await assert_ended(shared, job, "COMPLETED")


async def test_data_after_the_last_event_does_not_change_the_status(shared: Proxy) -> None:
    async with puppet(shared, slots=1) as worker:
        job = await leave_after(shared, worker, MESSAGES, [STOP])
        await worker.say(Chunk(job.job, job.attempt, DONE))  # as vLLM ends its messages
        await worker.say(End(job.job, job.attempt, "completed"))
        await assert_ended(shared, job, "COMPLETED")


@pytest.mark.parametrize("case", NOT_YET)
async def test_a_disconnect_before_the_last_event_cancels_the_job(shared: Proxy, case: str) -> None:
    path, events = NOT_YET[case]
    async with puppet(shared, slots=1) as worker:
        job = await leave_after(shared, worker, path, events, is_open=case == "half of it")
        assert (await worker.stopped()).job == job.job
        await assert_ended(shared, job, "CANCELLED")


async def test_a_job_whose_worker_is_lost_after_the_last_event_is_completed(shared: Proxy) -> None:
    async with puppet(shared, slots=1) as worker, wire(shared) as client:
        await client.send(call(CHAT, {"model": "m", "stream": True}))
        job = await begin(worker, [FIRST, DONE])
        await client.heard(DONE)
        await worker.socket.close()
        assert b"data" not in await client.heard(b"0\r\n\r\n")  # no error event after the end
        await assert_ended(shared, job, "COMPLETED")


async def test_a_run_that_does_not_end_is_stopped_and_its_job_is_completed(shared: Proxy) -> None:
    async with puppet(shared, slots=2) as worker:
        left = await leave_after(shared, worker, CHAT, [FIRST, DONE])
        async with wire(shared) as client:
            await client.send(call(CHAT, {"model": "m", "stream": True}))
            stays = await begin(worker, [FIRST, DONE])
            await client.heard(b"0\r\n\r\n")
        assert {(await worker.stopped()).job, (await worker.stopped()).job} == {left.job, stays.job}
        for job in (left, stays):
            await assert_ended(shared, job, "COMPLETED")


async def test_the_jobs_of_forty_clients_that_disconnect_at_the_end_are_completed(
    line: Line,
) -> None:
    before = await counts(line.proxy)
    for _ in range(40):
        async with wire(line.proxy) as client:
            await client.send(call(CHAT, chat(stream=True, max_tokens=2)))
            await client.heard(DONE)
    await until(lambda: not len(line.proxy.parts.interactive), what="the calls are over")
    assert await counts(line.proxy) == before | {"completed": before["completed"] + 40}


async def test_the_job_of_a_client_that_received_the_whole_body_is_completed(line: Line) -> None:
    before = await counts(line.proxy)
    for number in range(20):
        async with wire(line.proxy) as client:
            await client.send(call(CHAT, chat("x" * 100_000 if number % 2 else "x", max_tokens=1)))
            # The body has as many bytes as its Content-Length states.
            assert (await client.answer()).status == 200
    await asyncio.sleep(0)
    await until(lambda: not len(line.proxy.parts.interactive), what="the calls are over")
    assert await counts(line.proxy) == before | {"completed": before["completed"] + 20}


async def test_nothing_follows_the_last_event_of_a_call_that_is_overdue() -> None:
    """The last event waits in the mailbox when the deadline passes, as after a pause."""
    clock = FakeClock()
    async with serving(clock=clock) as proxy, puppet(proxy, slots=1) as worker:

        async def read() -> bytes:
            async with proxy.http.post(CHAT, json=chat(stream=True)) as answer:
                return await answer.read()

        reading = asyncio.create_task(read())
        job = await worker.job()
        (mailbox,) = proxy.parts.interactive
        mailbox.head(job.attempt, model.Head(200, EVENTS))
        mailbox.chunk(job.attempt, FIRST + DONE, more=False)
        clock.pass_time(DAY_SECONDS)
        proxy.parts.interactive.end_overdue()
        assert await reading == FIRST + DONE
