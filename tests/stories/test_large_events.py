"""Large SSE events reach a client that keeps up, and the buffer of the proxy stays bounded."""

import asyncio
import json
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
import pytest_asyncio
from aiohttp import ClientResponse
from harness.network.raw_http import request, wire
from harness.proxy.server import CHAT, Proxy, serving
from harness.tools.waiting import until
from harness.worker.puppet import Puppet, puppet

from proxy.service.fleet import OVERFLOW
from proxy.service.mailbox import EVENT_MAX_BYTES, STREAM_MAX_BYTES
from proxy.wire.flow import HIGH_WATERMARK_BYTES
from proxy.wire.frames import (
    PART_BYTES,
    SOCKET_BYTES,
    STREAM_WINDOW,
    Chunk,
    End,
    Ending,
    Head,
    Job,
    Pause,
    Resume,
    Stop,
)
from proxy.wire.sockets import limit_unsent_bytes

EVENTS = "text/event-stream; charset=utf-8"
# Bytes of vLLM's own event for `echo` with `logprobs`.
ECHO = 1_094_182
DONE = b"data: [DONE]\n\n"
END = b"0\r\n\r\n"
JSON = {"Content-Type": "application/json"}
BODY = json.dumps({"model": "m", "stream": True}).encode()


@pytest_asyncio.fixture(scope="module")
async def beating() -> AsyncIterator[Proxy]:
    """A proxy that sends a heartbeat at each opportunity."""
    async with serving(heartbeat_first=0.01, heartbeat_queued=0.01, heartbeat_silent=0.01) as proxy:
        yield proxy


def event(size: int) -> bytes:
    """Return an event of `size` bytes, no two parts of which are equal."""
    data = b"data: " + b"".join(b"%08d" % number for number in range(size // 8 + 1))
    return data[: size - 2] + b"\n\n"


def ask() -> bytes:
    return request(
        f"POST {CHAT}", "Content-Type: application/json", f"Content-Length: {len(BODY)}", body=BODY
    )


class Sender:
    """Sends the events of one job in parts.

    A patient sender respects the flow-control window, as our worker does.
    """

    def __init__(self, worker: Puppet, job: Job, *, patient: bool = True) -> None:
        self.worker, self.job, self.patient = worker, job, patient
        self.stopped = asyncio.Event()
        self._unanswered, self._room = 0, asyncio.Event()

    async def hear(self) -> None:
        """Obey the flow-control frames of the proxy."""
        while True:
            match await self.worker.hear():
                case Resume():
                    self._unanswered = 0
                    self._room.set()
                case Pause():
                    self._unanswered = STREAM_WINDOW
                case Stop():
                    self.stopped.set()

    async def send(self, data: bytes, *, more: bool = False) -> None:
        """Send an event, or a part of one if `more` is set."""
        for start in range(0, len(data), PART_BYTES):
            while self.patient and self._unanswered >= STREAM_WINDOW:
                self._room.clear()
                await self._room.wait()
            part = data[start : start + PART_BYTES]
            self._unanswered += len(part)
            goes_on = more or start + PART_BYTES < len(data)
            await self.worker.say(Chunk(self.job.job, self.job.attempt, part, more=goes_on))

    async def end(self) -> None:
        """Complete the response."""
        await self.send(DONE)
        await self.worker.say(End(self.job.job, self.job.attempt, "completed"))


@asynccontextmanager
async def sender(worker: Puppet, *, patient: bool = True) -> AsyncIterator[Sender]:
    """Take the next job, send the response head, and yield its sender."""
    # As our worker does: bytes in the kernel's buffer cannot be held back.
    limit_unsent_bytes(worker.socket.get_extra_info("socket"))
    job = await worker.job()
    await worker.say(Head(job.job, job.attempt, 200, EVENTS))
    one = Sender(worker, job, patient=patient)
    hearing = asyncio.create_task(one.hear())
    try:
        yield one
    finally:
        hearing.cancel()
        await asyncio.gather(hearing, return_exceptions=True)


def without_heartbeats(body: bytes) -> bytes:
    return re.sub(rb"(?m)^:[^\n]*\n", b"", body)


@asynccontextmanager
async def called(
    proxy: Proxy, worker: Puppet, *, patient: bool = True
) -> AsyncIterator[tuple[Sender, ClientResponse]]:
    """Make a call whose client reads without delay; yield its sender and its response."""
    async with (
        proxy.http.post(CHAT, data=BODY, headers=JSON) as response,
        sender(worker, patient=patient) as one,
    ):
        yield one, response


@pytest.mark.parametrize("patient", [True, False], ids=["a window at a time", "all at once"])
@pytest.mark.parametrize("size", [EVENT_MAX_BYTES, EVENT_MAX_BYTES + 1, ECHO])
async def test_a_large_event_arrives_complete(beating: Proxy, size: int, patient: bool) -> None:
    async with (
        puppet(beating, slots=1) as worker,
        called(beating, worker, patient=patient) as (one, response),
    ):
        reading = asyncio.create_task(response.read())
        for _ in range(2):
            await one.send(event(size))
        await one.end()
        assert without_heartbeats(await reading) == 2 * event(size) + DONE


async def test_an_event_of_twenty_megabytes_arrives_complete_with_a_bounded_buffer(
    beating: Proxy,
) -> None:
    data, most = event(20_000_000), 0
    async with puppet(beating, slots=1) as worker, called(beating, worker) as (one, response):
        [mailbox] = list(beating.parts.interactive)
        reading = asyncio.create_task(response.read())
        for start in range(0, len(data), PART_BYTES):
            await one.send(data[start : start + PART_BYTES], more=start + PART_BYTES < len(data))
            most = max(most, mailbox.backlog)
        await one.end()
        assert without_heartbeats(await reading) == data + DONE
    assert 0 < most < STREAM_MAX_BYTES


async def test_no_heartbeat_is_sent_between_the_parts_of_an_event(beating: Proxy) -> None:
    data, cut = event(ECHO), EVENT_MAX_BYTES + 10
    async with puppet(beating, slots=2) as worker, wire(beating) as client, wire(beating) as other:
        await client.send(ask())
        async with sender(worker) as one:
            await one.send(b"data: 1\n\n")
            await client.heard(b": running\n")
            await one.send(data[:cut], more=True)
            came = await client.heard(data[cut - 40 : cut])
            assert b": running\n" not in came[came.index(data[:40]) :]
        await other.send(ask())
        async with sender(worker) as beside:
            for _ in range(3):
                await other.heard(b": running\n")  # the heartbeats are due
            await beside.end()
        await other.heard(END)
        await one.send(data[cut : cut + PART_BYTES], more=True)
        assert b": running\n" not in await client.heard(
            data[cut + PART_BYTES - 40 : cut + PART_BYTES]
        )
        await one.send(data[cut + PART_BYTES : cut + 2 * PART_BYTES])
        await client.heard(b": running\n")
        await one.end()
        await client.heard(END)


@pytest.mark.parametrize("patient", [True, False], ids=["its worker waits", "its call is cut"])
async def test_the_buffer_is_bounded_for_a_client_that_stops_reading(
    beating: Proxy, patient: bool
) -> None:
    async with puppet(beating, slots=1) as worker, wire(beating) as client:
        await client.send(ask())
        async with sender(worker, patient=patient) as one:
            [mailbox] = list(beating.parts.interactive)
            sending = asyncio.create_task(one.send(event(40_000_000)))
            if patient:
                await until(
                    lambda: mailbox.backlog > HIGH_WATERMARK_BYTES, what="its reader is behind"
                )
            else:
                await one.stopped.wait()
                assert (await status(beating, one.job))["error"] == OVERFLOW.message
            assert mailbox.backlog <= STREAM_MAX_BYTES + (0 if patient else SOCKET_BYTES)
            sending.cancel()
            await asyncio.gather(sending, return_exceptions=True)


@pytest.mark.parametrize(("size", "comes"), [(EVENT_MAX_BYTES - 100, False), (ECHO, True)])
async def test_a_run_lost_in_the_middle_of_an_event_ends_with_an_error_event(
    beating: Proxy, size: int, comes: bool
) -> None:
    """An event that fits the buffer is never sent in part, and the error is a separate event."""
    data = event(size)[:-1_000]
    async with puppet(beating, slots=1) as worker, called(beating, worker) as (one, response):
        reading = asyncio.create_task(response.read())
        await one.send(b"data: 1\n\n")
        await until(
            lambda: all(mailbox.left for mailbox in beating.parts.interactive),
            what="the client has some of it",
        )
        await one.send(data, more=True)
        await worker.say(End(one.job.job, one.job.attempt, "lost", "worker_lost", "gone"))
        body = without_heartbeats(await reading)
    begun = b"data: 1\n\n" + (data + b"\n\n" if comes else b"")
    assert body.startswith(begun + b'data: {"error"')
    assert body.endswith(DONE)


@pytest.mark.parametrize("ending", ["failed", "completed"])
async def test_the_job_of_a_client_that_disconnects_after_a_large_error_event_has_failed(
    beating: Proxy, ending: Ending
) -> None:
    data = b'data: {"error": {"message": "' + b"x" * EVENT_MAX_BYTES + b'"}}\n\n'
    async with puppet(beating, slots=1) as worker, wire(beating) as client:
        await client.send(ask())
        async with sender(worker) as one:
            await one.send(data)
            await client.heard(data[-40:])
            [mailbox] = list(beating.parts.interactive)
            await client.close()
            await until(lambda: mailbox.abandoned, what="the client has left")
            await worker.say(End(one.job.job, one.job.attempt, ending, "error_event", "it failed"))
            await until(lambda: not len(beating.parts.interactive), what="the call is over")
            assert (await status(beating, one.job))["status"] == ending.upper()


async def status(proxy: Proxy, job: Job) -> dict[str, Any]:
    async with proxy.http.get(f"/v2/default/status/{job.job}") as answer:
        found: dict[str, Any] = await answer.json()
        return found
