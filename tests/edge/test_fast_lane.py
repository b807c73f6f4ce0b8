"""The fast lane and the application give the same answers; the lane creates no task."""

import asyncio
import json
import random
import re
import socket
from collections.abc import AsyncIterator, Iterator
from contextlib import suppress
from itertools import pairwise
from typing import Any, cast

import pytest
import pytest_asyncio
from harness.network.raw_http import Answer, json_request, wire
from harness.proxy.server import CHAT, Proxy, chat, serving
from harness.tools.counting import counted_tasks
from harness.tools.parsed import MemoryTransport, configuration, connect
from harness.tools.waiting import until
from harness.worker.process import worker
from harness.worker.puppet import puppet, whole
from uvicorn.server import ServerState

from proxy.jobs.model import EndpointId
from proxy.wire.frames import PART_BYTES, Chunk, End, Frame, Head, Job

EVENT = b'data: {"choices": []}\n\n'
# More than the buffers of both ends of a connection take.
UNREAD_MAX_ANSWERS = 400
DONE = b"data: [DONE]\n\n"
# What differs between two answers to one request.
VARIABLE_FIELDS = (b"date", b"x-request-id", b"request-id", b"x-job-id", b"openai-processing-ms")
VARIABLE_FIELDS += (b"x-ratelimit-reset-requests",)
SDK = {
    "x-stainless-lang": "python",
    "x-stainless-retry-count": "0",
    "x-stainless-read-timeout": "600",
    "user-agent": "AsyncOpenAI/Python 3.57",
}


PLAIN = chat("x", max_tokens=3)
STREAM = chat("x", max_tokens=3, stream=True)
REQUESTS = {
    "whole": json_request(PLAIN),
    "stream": json_request(STREAM),
    "SDK": json_request(STREAM, **SDK),
    "completions": json_request({"model": "scripted", "prompt": "x"}, "/v1/completions"),
    "messages": json_request(PLAIN | {"max_tokens": 2}, "/v1/messages"),
    "responses": json_request({"model": "scripted", "input": "x"}, "/v1/responses"),
    "endpoint": json_request(PLAIN, "/v2/default/openai/v1/chat/completions"),
    "byte order mark": json_request(b"\xef\xbb\xbf" + json.dumps(PLAIN).encode()),
    "no model": json_request({"messages": PLAIN["messages"], "max_tokens": 2}),
    "unknown model": json_request(PLAIN | {"model": "other"}),
    "unknown endpoint": json_request(PLAIN, "/v2/other/openai/v1/chat/completions"),
    "no JSON": json_request(b"{"),
    "retired field": json_request(PLAIN | {"guided_json": {}}),
    "other type": json_request(PLAIN, content_type="text/plain"),
    "query": json_request(PLAIN, f"{CHAT}?api-version=1"),
    "request id": json_request(PLAIN, x_request_id="mine"),
    "whitespace": json_request(PLAIN, x_heartbeat="whitespace"),
    "error of the engine": json_request(PLAIN | {"fault": "status:500"}),
    "late error of the engine": json_request(STREAM | {"fault": "error_event:1"}),
    "lost connection of the engine": json_request(STREAM | {"fault": "cut:2"}),
    "chunked": json_request(
        b"%x\r\n%b\r\n0\r\n\r\n" % (len(json.dumps(PLAIN)), json.dumps(PLAIN).encode()),
        transfer_encoding="chunked",
    ),
    "expect": json_request(PLAIN, connection="keep-alive", accept="*/*"),
    "GET": json_request(b"", method="GET"),
    "unknown path": json_request(PLAIN, "/v1/unknown"),
}

RAW = json_request(PLAIN)
LENGTH = re.compile(rb"content-length: (\d+)")
# Requests that resemble an earlier one of the same connection.
REPEATED = {
    "longer": json_request(chat("a longer text", max_tokens=3)),
    "shorter": json_request({"max_tokens": 1}),
    "other path": json_request(PLAIN, "/v1/completions"),
    "other version": RAW.replace(b"HTTP/1.1", b"HTTP/1.0"),
    "upper case": RAW.replace(b"content-type", b"Content-Type"),
    "another field": json_request(PLAIN, accept="*/*"),
    "other host": json_request(PLAIN, host="127.0.0.1"),
    "zeros": LENGTH.sub(rb"content-length: 00\1", RAW),
    "blanks": LENGTH.sub(rb"content-length:  \1 ", RAW),
    "no blank": LENGTH.sub(rb"content-length:\1", RAW),
    "no number": LENGTH.sub(rb"content-length: x", RAW),
    "no value": LENGTH.sub(rb"content-length: ", RAW),
    "a sign": LENGTH.sub(rb"content-length: +\1", RAW),
    "two lengths": LENGTH.sub(rb"content-length: \1\r\ncontent-length: \1", RAW),
    "a list": LENGTH.sub(rb"content-length: \1, \1", RAW),
    "too small": LENGTH.sub(b"content-length: 20", RAW),
    "too large": LENGTH.sub(b"content-length: 999999999999", RAW),
    "blank line before": b"\r\n" + RAW,
    "blank line after": RAW + b"\r\n",
    "two at once": RAW + RAW,
    "line ends": RAW.replace(b"\r\n", b"\n"),
}


@pytest_asyncio.fixture(scope="module")
async def pair() -> AsyncIterator[tuple[Proxy, Proxy]]:
    """A proxy with the lane and one without it, each with a worker."""
    async with serving() as fast, serving(fast_lane="off") as slow, worker(fast), worker(slow):
        yield fast, slow


@pytest_asyncio.fixture
async def proxy() -> AsyncIterator[Proxy]:
    async with serving(heartbeat_silent=0.05) as one:
        yield one


@pytest.mark.parametrize("raw", REQUESTS.values(), ids=REQUESTS)
async def test_both_ways_give_the_same_answer(pair: tuple[Proxy, Proxy], raw: bytes) -> None:
    fast, slow = [await answers(proxy, [raw, raw]) for proxy in pair]
    assert fast == slow
    assert len(fast) == 2


@pytest.mark.parametrize("raw", REPEATED.values(), ids=REPEATED)
async def test_a_request_that_resembles_the_last_one(pair: tuple[Proxy, Proxy], raw: bytes) -> None:
    fast, slow = [await answers(proxy, [RAW, RAW, raw]) for proxy in pair]
    assert fast == slow


async def test_a_repeated_request_can_arrive_in_any_two_pieces(pair: tuple[Proxy, Proxy]) -> None:
    texts = ("first", "second and longer", "x")
    with socket.socket() as unconnected:
        config = configuration(pair[0].parts.edge, pair[0].parts.app)
        for cut in range(1, len(json_request(chat(texts[1])))):
            protocol, transport = connect(config, ServerState(), unconnected)
            for text in texts:
                raw = json_request(chat(text, max_tokens=1))
                places = [cut] if text == texts[1] else []
                for piece in cut_at(raw, places):
                    protocol.data_received(piece)
                assert f"{text} 0".encode() in await answer_in_memory(transport)
            protocol.connection_lost(None)


async def test_a_repeated_head_is_not_parsed(pair: tuple[Proxy, Proxy]) -> None:
    with socket.socket() as unconnected:
        config = configuration(pair[0].parts.edge, pair[0].parts.app)
        protocol, transport = connect(config, ServerState(), unconnected)
        for text in ("first", "second and longer", "x"):
            protocol.data_received(json_request(chat(text, max_tokens=1)))
            assert f"{text} 0".encode() in await answer_in_memory(transport)
            # What is not needed cannot be used.
            protocol.parser = cast("Any", None)
        assert transport.writes == 3
        protocol.connection_lost(None)


async def test_a_repeated_call_can_leave_the_lane(proxy: Proxy) -> None:
    async with puppet(proxy, slots=1) as one, wire(proxy) as client:
        for is_lost in (False, True, False):
            await client.send(json_request(PLAIN))
            job = await one.job()
            if is_lost:
                await one.say(End(job.job, job.attempt, "lost", "engine_dead", "the engine died"))
                job = await one.job()
            await one.say(*whole(job))
            answer = await client.answer()
            assert answer.body == b"{}"
            assert answer.headers[b"x-job-id"].decode() == job.job


async def test_pipelined_requests_are_answered_in_order(pair: tuple[Proxy, Proxy]) -> None:
    batch = [json_request(chat(f"p{number}", stream=number % 2 == 0)) for number in range(6)]
    async with wire(pair[0]) as one:
        await one.send(b"".join(batch))
        for number in range(6):
            assert f"p{number} 0".encode() in (await one.answer()).body


async def test_a_plain_call_creates_no_task(proxy: Proxy) -> None:
    async with puppet(proxy, slots=1) as one, wire(proxy) as client:
        for fields, tasks in (({}, 0), ({"x_unknown": "1"}, 1)):
            with counted_tasks() as created:
                await client.send(json_request(PLAIN, **fields))
                job = await one.job()
                await one.say(*whole(job))
                assert (await client.answer()).status == 200
            assert created["RequestResponseCycle.run_asgi"] == tasks


async def test_a_stream_of_the_lane_gets_heartbeats(proxy: Proxy) -> None:
    async with puppet(proxy, slots=1) as one, wire(proxy) as client:
        await client.send(json_request(STREAM))
        job = await one.job()
        await one.say(*begin(job))
        assert EVENT in await client.heard(EVENT)
        await client.heard(b": running\n")
        await one.say(Chunk(job.job, job.attempt, DONE), End(job.job, job.attempt, "completed"))
        assert (await client.heard(b"0\r\n\r\n")).endswith(DONE + b"\r\n0\r\n\r\n")


async def test_a_run_that_is_lost_early_is_done_again(proxy: Proxy) -> None:
    async with puppet(proxy, slots=1) as one, wire(proxy) as client:
        await client.send(json_request(PLAIN))
        job = await one.job()
        await one.say(End(job.job, job.attempt, "lost", "engine_dead", "the engine died"))
        again = await one.job()
        assert (again.job, again.attempt) == (job.job, 2)
        await one.say(*whole(again))
        assert (await client.answer()).body == b"{}"


@pytest.mark.parametrize("has_begun", [False, True])
async def test_a_client_that_leaves_cancels_its_run(proxy: Proxy, has_begun: bool) -> None:
    async with puppet(proxy, slots=1) as one:
        async with wire(proxy) as client:
            await client.send(json_request(STREAM))
            job = await one.job()
            if has_begun:
                await one.say(*begin(job))
                await client.heard(EVENT)
        stop = await one.stopped()
        assert (stop.job, stop.attempt) == (job.job, 1)
        await one.say(End(job.job, job.attempt, "completed"))
        await until(lambda: _ended(proxy, "cancelled"), what="the job is cancelled")
    assert not len(proxy.parts.interactive)
    assert proxy.parts.bodies.used == 0


async def test_a_client_that_leaves_after_the_last_event_has_a_complete_answer(
    proxy: Proxy,
) -> None:
    async with puppet(proxy, slots=1) as one:
        async with wire(proxy) as client:
            await client.send(json_request(STREAM))
            job = await one.job()
            await one.say(*begin(job), Chunk(job.job, job.attempt, DONE))
            await client.heard(DONE)
        await until(lambda: _ended(proxy, "completed"), what="the job is completed")


async def test_chunks_of_all_kinds_arrive_in_their_order() -> None:
    """Whole events, events in parts, and events that are too large to be held back, of which any
    number arrives in one message.
    """
    async with serving() as proxy, puppet(proxy, slots=1) as one:
        for seed in range(12):
            chance = random.Random(seed)
            # One is too large to be held back; all together fit into a mailbox.
            sizes = [300_000, *(chance.choice([0, 100, 40_000]) for _ in range(12))]
            chance.shuffle(sizes)
            events = [b"data: %b\n\n" % (b"x" * size) for size in sizes]
            events.append(DONE)
            async with wire(proxy) as client:
                await client.send(json_request(STREAM))
                reading = asyncio.create_task(client.answer())
                job = await one.job()
                await one.say(*begin(job))
                for message in messages(job, events, chance):
                    await one.say(*message)
                await one.say(End(job.job, job.attempt, "completed"))
                assert (await reading).body == b"".join([EVENT, *events]), seed


async def test_a_job_that_has_to_wait_uses_the_application(proxy: Proxy) -> None:
    async with wire(proxy) as client:
        await client.send(json_request(STREAM))
        await until(lambda: len(proxy.parts.interactive) == 1)
        async with puppet(proxy, slots=1) as one:
            job = await one.job()
            await one.say(*begin(job), Chunk(job.job, job.attempt, DONE))
            await client.heard(DONE)


async def test_responses_that_are_not_read_stop_the_connection(proxy: Proxy) -> None:
    """Each request is sent when the run of the one before has ended."""
    large = b"%b" % (b" " * 60_000)
    async with puppet(proxy, slots=1) as one, wire(proxy) as client:
        sent = 0
        with suppress(AssertionError):
            while sent < UNREAD_MAX_ANSWERS:
                await client.send(json_request(PLAIN))
                job = await one.job()
                head, _, end = whole(job)
                await one.say(head, Chunk(job.job, job.attempt, large), end)
                sent += 1
                await until(lambda: not len(proxy.parts.interactive), 1.0, "it is written")
        assert sent < UNREAD_MAX_ANSWERS
        for _ in range(sent):
            assert len((await client.answer()).body) == len(large)


async def answers(proxy: Proxy, requests: list[bytes]) -> list[tuple[int, Any, bytes]]:
    """Send requests one after the other on one connection; return what does not vary."""
    found = []
    async with wire(proxy) as one:
        for raw in requests:
            await one.send(raw)
            found.append(comparable(await one.answer()))
    return found


async def answer_in_memory(transport: MemoryTransport) -> bytes:
    """Return the next answer, a JSON object."""
    await until(lambda: transport.written.endswith(b"}"), what="the answer")
    answer = bytes(transport.written)
    transport.written.clear()
    return answer


def cut_at(raw: bytes, places: list[int]) -> list[bytes]:
    """Return the pieces between these places."""
    return [raw[start:end] for start, end in pairwise([0, *places, len(raw)])]


def comparable(answer: Answer) -> tuple[int, Any, bytes]:
    headers = {
        name: value
        for name, value in answer.headers.items()
        if name not in (*VARIABLE_FIELDS, b"x-ratelimit-remaining-requests")
    }
    # Ids, and times of creation.
    body = re.sub(rb"[0-9a-f]{24,32}|(?<=_at\": )\d+", b"ID", answer.body)
    return answer.status, (headers, sorted(answer.headers)), body


def begin(job: Job) -> tuple[Head, Chunk]:
    return (
        Head(job.job, job.attempt, 200, "text/event-stream"),
        Chunk(job.job, job.attempt, EVENT),
    )


def messages(job: Job, events: list[bytes], chance: random.Random) -> Iterator[list[Frame]]:
    """Yield the messages with the chunks of these events; each has up to four chunks."""
    message: list[Frame] = []
    for event in events:
        for at in range(0, len(event), PART_BYTES):
            end = at + PART_BYTES
            chunk = Chunk(job.job, job.attempt, event[at:end], more=end < len(event))
            message.append(chunk)
            if len(message) == 4 or chance.random() < 0.3:
                yield message
                message = []
    yield message


async def _ended(proxy: Proxy, status: str) -> bool:
    counts = await proxy.parts.view.counts(EndpointId("default"))
    return bool(getattr(counts, status) == 1)
