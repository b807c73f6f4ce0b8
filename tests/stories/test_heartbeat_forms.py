"""Every API has heartbeats that its clients understand; setting and header choose another form."""

import asyncio
import json
from asyncio import Future
from collections.abc import AsyncIterator
from typing import Any

import pytest
import pytest_asyncio
from harness.data import responses
from harness.network.raw_http import Wire, request, wire
from harness.proxy.server import CHAT, Proxy, serving
from harness.worker.puppet import Puppet, puppet

from proxy.wire.frames import Body, Chunk, End, Head, Job

EVENTS = "text/event-stream; charset=utf-8"
COMPLETIONS, RESPONSES, MESSAGES = "/v1/completions", "/v1/responses", "/v1/messages"
DONE = b"data: [DONE]\n\n"
OFTEN = {"heartbeat_first": 0.01, "heartbeat_queued": 0.01, "heartbeat_silent": 0.01}
COMMENT = b": running\n"
PING = b'event: ping\ndata: {"type": "ping"}\n\n'
KEEPALIVE = b'event: keepalive\ndata: {"type":"keepalive","sequence_number":2}\n\n'
FIRST = {
    "id": "chatcmpl-1",
    "object": "chat.completion.chunk",
    "created": 7,
    "model": "small",
    "choices": [{"index": 0, "delta": {"role": "assistant", "content": ""}}],
}
FIRST_TEXT = FIRST | {
    "id": "cmpl-1",
    "object": "text_completion",
    "choices": [{"index": 0, "text": "a", "finish_reason": None}],
}
EMPTY_CHAT = {"index": 0, "delta": {}, "logprobs": None, "finish_reason": None}
EMPTY_TEXT = {"index": 0, "text": "", "logprobs": None, "finish_reason": None}


def data(event: dict[str, Any]) -> bytes:
    return b"data: %b\n\n" % json.dumps(event, separators=(",", ":")).encode()


# For a path and a form: the first events of the engine, and the heartbeat after them.
FORMS: dict[str, tuple[str, str | None, bytes, bytes]] = {
    "chat": (CHAT, None, data(FIRST), COMMENT),
    "chat, auto": (CHAT, "auto", data(FIRST), COMMENT),
    "chat, whitespace": (CHAT, "whitespace", data(FIRST), COMMENT),
    "chat, chunk": (CHAT, "chunk", data(FIRST), data(FIRST | {"choices": [EMPTY_CHAT]})),
    "completions": (COMPLETIONS, None, data(FIRST_TEXT), COMMENT),
    "completions, chunk": (
        COMPLETIONS,
        "Chunk",
        data(FIRST_TEXT),
        data(FIRST_TEXT | {"choices": [EMPTY_TEXT]}),
    ),
    "an unknown chunk": (CHAT, "chunk", b'data: {"text": "a"}\n\n', COMMENT),
    "after the last chunk": (
        CHAT,
        "chunk",
        data(FIRST | {"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]}),
        COMMENT,
    ),
    "responses": (RESPONSES, None, responses.beginning(), KEEPALIVE),
    "responses, chunk": (RESPONSES, "chunk", responses.beginning(), KEEPALIVE),
    "responses, comment": (RESPONSES, "comment", responses.beginning(), COMMENT),
    "messages": (MESSAGES, None, b"event: message_start\ndata: {}\n\n", PING),
    "messages, comment": (MESSAGES, "comment", b"event: message_start\ndata: {}\n\n", COMMENT),
}


@pytest_asyncio.fixture(scope="module")
async def beating() -> AsyncIterator[Proxy]:
    """A proxy that sends a heartbeat at each opportunity."""
    async with serving(**OFTEN) as proxy:
        yield proxy


def call(path: str, form: str | None, version: str = "1.1", **body: Any) -> bytes:
    content = json.dumps({"model": "small"} | body).encode()
    fields = ["Content-Type: application/json", f"Content-Length: {len(content)}"]
    if form is not None:
        fields.append(f"X-Heartbeat: {form}")
    return request(f"POST {path}", *fields, body=content, version=version)


async def answer(worker: Puppet, head: Head | None = None) -> Job:
    """Take the next job and send the head of its response."""
    job = await worker.job()
    given = head or Head("", 0, 200, EVENTS)
    await worker.say(Head(job.job, job.attempt, given.status, given.content_type))
    return job


async def end(worker: Puppet, job: Job, *chunks: bytes) -> None:
    await worker.say(*(Chunk(job.job, job.attempt, chunk) for chunk in chunks))
    await worker.say(End(job.job, job.attempt, "completed"))


async def test_heartbeats_have_the_form_of_the_api_or_of_the_header(beating: Proxy) -> None:
    """All cases at once, because each of them waits for heartbeats."""
    async with puppet(beating, slots=len(FORMS)) as worker:
        jobs: dict[str, Future[Job]] = {
            case: asyncio.get_running_loop().create_future() for case in FORMS
        }
        calls = [asyncio.create_task(_check_form(beating, worker, jobs, case)) for case in FORMS]
        heads: dict[str, Job] = {}
        while not all(job.done() for job in jobs.values()):
            match await worker.hear():
                case Job() as head:
                    heads[head.job] = head
                case Body(job=job, data=body):
                    jobs[json.loads(body)["user"]].set_result(heads[job])
        await asyncio.gather(*calls)


async def _check_form(
    proxy: Proxy, worker: Puppet, jobs: dict[str, "Future[Job]"], case: str
) -> None:
    path, form, first, heartbeat = FORMS[case]
    before = PING if heartbeat == PING else COMMENT
    try:
        async with wire(proxy) as client:
            await client.send(call(path, form, stream=True, user=case))
            job = await jobs[case]
            await worker.say(Head(job.job, job.attempt, 200, EVENTS))
            assert (await client.heard(before)).startswith(b"HTTP/1.1 200 ")
            await worker.say(Chunk(job.job, job.attempt, first))
            assert first in await client.heard(heartbeat) + await client.heard(heartbeat)
            await end(worker, job, DONE)
            assert DONE in await client.heard(b"0\r\n\r\n")
    except BaseException as error:
        error.add_note(case)
        raise


async def test_the_setting_chooses_the_form_and_the_header_overrides_it() -> None:
    async with serving(**OFTEN, heartbeat="chunk") as proxy, puppet(proxy, slots=2) as worker:
        for form, heartbeat in ((None, EMPTY_CHAT), ("comment", None)):
            async with wire(proxy) as client:
                await client.send(call(CHAT, form, stream=True))
                job = await answer(worker)
                await worker.say(Chunk(job.job, job.attempt, data(FIRST)))
                expected = data(FIRST | {"choices": [heartbeat]}) if heartbeat else COMMENT
                await client.heard(expected)
                await end(worker, job, DONE)
                await client.heard(b"0\r\n\r\n")


async def test_without_heartbeats_an_error_keeps_its_status() -> None:
    async with serving(**OFTEN, heartbeat="off", queue_timeout=0.5) as proxy:
        async with proxy.http.post(CHAT, json={"stream": True}) as response:
            assert response.status == 503
        headers = {"x-heartbeat": "comment"}
        async with proxy.http.post(CHAT, json={"stream": True}, headers=headers) as response:
            assert response.status == 200


async def test_an_unknown_form_is_rejected(beating: Proxy) -> None:
    async with beating.http.post(CHAT, json={}, headers={"x-heartbeat": "often"}) as response:
        assert response.status == 400
        error = (await response.json())["error"]
    assert error["param"] == "x-heartbeat"
    assert "auto, chunk, comment, off, whitespace" in error["message"]


@pytest.mark.parametrize(
    ("status", "content"),
    [(200, b'{"choices": []}'), (400, b'{"error": {"message": "no", "code": 400}}')],
)
async def test_blanks_precede_the_body_of_a_call_that_asks_for_them(
    beating: Proxy, status: int, content: bytes
) -> None:
    async with puppet(beating, slots=1) as worker, wire(beating) as client:
        await client.send(call(CHAT, "whitespace"))
        head = await client.heard(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 200 ")
        assert b"content-type: application/json\r\n" in head
        job = await answer(worker, Head("", 0, status, "application/json"))
        await client.heard(b"1\r\n \r\n")
        await client.heard(b"1\r\n \r\n")
        await end(worker, job, content)
        await client.heard(b"\r\n%b\r\n0\r\n\r\n" % content)


async def test_an_error_after_blanks_is_the_error_object() -> None:
    async with serving(**OFTEN, queue_timeout=0.6) as proxy:
        headers = {"x-heartbeat": "whitespace", "x-stainless-read-timeout": "0.3"}
        async with proxy.http.post(CHAT, json={}, headers=headers) as response:
            body = await response.read()
            assert response.status == 200
    assert body.startswith(b" ")
    assert json.loads(body)["error"]["code"] == "no_workers"


async def test_an_http_1_0_client_receives_no_blanks(beating: Proxy) -> None:
    async with puppet(beating, slots=1) as worker, wire(beating) as client:
        await client.send(call(CHAT, "whitespace", version="1.0"))
        job = await answer(worker, Head("", 0, 400, "application/json"))
        await end(worker, job, b"{}")
        assert (await client.rest()).startswith(b"HTTP/1.1 400 ")


async def _heartbeats(client: Wire, mark: bytes, number: int) -> bytes:
    return b"".join([await client.heard(mark) for _ in range(number)])


async def test_numbers_of_a_response_never_decrease(beating: Proxy) -> None:
    async with puppet(beating, slots=1) as worker, wire(beating) as client:
        await client.send(call(RESPONSES, None, stream=True))
        job = await answer(worker)
        await worker.say(Chunk(job.job, job.attempt, responses.beginning()))
        body = await _heartbeats(client, KEEPALIVE, 2)
        await worker.say(Chunk(job.job, job.attempt, responses.tokens("hi")))
        body += await client.heard(b'{"type":"keepalive","sequence_number":5}')
        await end(worker, job, responses.end("hi"))
        body += await client.heard(b"0\r\n\r\n")
    events = [line.removeprefix(b"data: ") for line in body.splitlines() if line[:5] == b"data:"]
    numbers = [json.loads(event)["sequence_number"] for event in events]
    assert numbers == sorted(numbers)
    assert {*range(8)} <= {*numbers}


async def test_the_number_of_a_large_event_is_known(beating: Proxy) -> None:
    """An event of more than 256 KB is sent in parts, the first of which contains the number."""
    number = 2
    async with puppet(beating, slots=1) as worker, wire(beating) as client:
        await client.send(call(RESPONSES, None, stream=True))
        job = await answer(worker)
        await worker.say(Chunk(job.job, job.attempt, responses.beginning()))
        for size in (10_000, 400_000):
            large = responses.event("response.x", number)
            large = large.replace(b'"type"', b'"text": "%b", "type"' % (b"x" * size))
            parts = [large[start : start + 60_000] for start in range(0, len(large), 60_000)]
            for part in parts[:-1]:
                await worker.say(Chunk(job.job, job.attempt, part, more=True))
            await worker.say(Chunk(job.job, job.attempt, parts[-1]))
            number += 1
            await client.heard(b'{"type":"keepalive","sequence_number":%d}' % number)
        await end(worker, job, DONE)
        await client.heard(b"0\r\n\r\n")
