"""A streamed response that fails says so in the events that its clients read."""

import asyncio
import json
from collections.abc import AsyncIterator, Coroutine
from typing import Any

import pytest
import pytest_asyncio
from harness.data import responses
from harness.proxy.server import Proxy, frames, serving
from harness.worker.puppet import Puppet, puppet

from proxy.wire.frames import Chunk, End, Head

RESPONSES = "/v1/responses"
STREAM = {"model": "small", "input": "hi", "stream": True}
TOO_LONG = b'{"error": {"message": "This model\'s maximum context length is 9.", "code": 400}}'


@pytest_asyncio.fixture(scope="module")
async def shared() -> AsyncIterator[Proxy]:
    """A proxy whose streams receive no heartbeat while they are queued."""
    async with serving(heartbeat_first=30.0, heartbeat_silent=0.01) as proxy:
        yield proxy


async def lose(worker: Puppet, times: int) -> None:
    """Lose the next runs before they have output."""
    for _ in range(times):
        job = await worker.job()
        await worker.say(End(job.job, job.attempt, "lost", "engine_dead", "the engine died"))


async def refuse(
    worker: Puppet, status: int, body: bytes, fields: tuple[tuple[bytes, bytes], ...] = ()
) -> None:
    """Answer the next job with an error of the engine."""
    job = await worker.job()
    await worker.say(
        Head(job.job, job.attempt, status, "application/json", fields),
        Chunk(job.job, job.attempt, body),
        End(job.job, job.attempt, "failed", f"http_{status}", ""),
    )


async def call(
    proxy: Proxy, engine: Coroutine[None, None, None], body: dict[str, Any]
) -> tuple[int, Any, bytes]:
    """Call without heartbeats while the engine does something; return status, headers and body."""
    headers = {"x-heartbeat": "off"}
    acting = asyncio.create_task(engine)
    async with proxy.http.post(RESPONSES, json=body, headers=headers) as response:
        content = await response.read()
    await acting
    return response.status, response.headers, content


def split(body: bytes) -> list[dict[str, Any]]:
    return decoded([event for event in body.split(b"\n\n") if event])


def decoded(events: list[bytes]) -> list[dict[str, Any]]:
    return [json.loads(event.partition(b"\ndata: ")[2]) for event in events]


async def test_an_error_that_would_not_be_retried_is_sent_as_events(shared: Proxy) -> None:
    async with puppet(shared, slots=1) as worker:
        status, headers, body = await call(shared, lose(worker, 3), STREAM)
    assert status == 200
    created, error, failed = split(body)
    assert created["type"] == "response.created"
    assert (error["type"], error["code"]) == ("error", "gave_up")
    assert failed["response"]["error"] == {"code": "invalid_prompt", "message": error["message"]}
    assert failed["response"]["id"] == created["response"]["id"]
    async with shared.http.get(f"/v2/default/status/{headers['x-job-id']}") as answer:
        assert (await answer.json())["status"] == "FAILED"


async def test_a_call_that_is_not_streamed_keeps_its_status(shared: Proxy) -> None:
    async with puppet(shared, slots=1) as worker:
        status, headers, _ = await call(shared, lose(worker, 3), STREAM | {"stream": False})
    assert (status, headers["x-should-retry"]) == (502, "false")


@pytest.mark.parametrize(
    ("given", "seen"), [(400, 400), (429, 429), (503, 503), (500, 200), (501, 200)]
)
async def test_only_final_errors_of_the_engine_become_events(
    shared: Proxy, given: int, seen: int
) -> None:
    message = b'{"error": {"message": "no", "code": 1}}'
    async with puppet(shared, slots=1) as worker:
        status, _, body = await call(shared, refuse(worker, given, message), STREAM)
    assert status == seen
    if seen == given:
        assert body == message
    else:
        _, error, failed = split(body)
        assert (error["message"], error["code"]) == ("no", "1")
        assert failed["response"]["error"]["code"] == "invalid_prompt"


@pytest.mark.parametrize(("word", "status"), [(b"true", 500), (b"false", 200)])
async def test_the_engine_can_say_if_its_error_is_final(
    shared: Proxy, word: bytes, status: int
) -> None:
    """A final error is sent as events; without the header, an engine's 500 is final."""
    message = b'{"error": {"message": "no", "type": "server_error", "code": 1}}'
    async with puppet(shared, slots=1) as worker:
        engine = refuse(worker, status=500, body=message, fields=((b"x-should-retry", word),))
        seen, _, _ = await call(shared, engine, STREAM)
    assert seen == status


async def test_the_engines_refusal_after_a_heartbeat_is_a_failed_response(shared: Proxy) -> None:
    async with puppet(shared, slots=1) as worker:
        async with shared.http.post(RESPONSES, json=STREAM) as response:
            job = await worker.job()
            assert await response.content.readline() == b": running\n"
            await worker.say(
                Head(job.job, job.attempt, 400, "application/json"),
                Chunk(job.job, job.attempt, TOO_LONG),
                End(job.job, job.attempt, "failed"),
            )
            *_, failed = decoded(await frames(response))
    assert failed["response"]["error"]["code"] == "context_length_exceeded"


async def test_a_run_that_is_lost_in_the_middle_ends_with_both_events(shared: Proxy) -> None:
    await lose_in_the_middle(shared)


async def test_a_failed_response_without_heartbeats_keeps_its_identity() -> None:
    async with serving(heartbeat="off") as proxy:
        await lose_in_the_middle(proxy)


async def lose_in_the_middle(proxy: Proxy) -> None:
    """Lose the run of a stream after its first text, and check the last events."""
    async with puppet(proxy, slots=1) as worker, proxy.openai() as client:
        # Without heartbeats, the response begins with the engine's first event.
        creating = asyncio.create_task(client.responses.create(**STREAM))
        job = await worker.job()
        await worker.say(
            Head(job.job, job.attempt, 200, "text/event-stream"),
            Chunk(job.job, job.attempt, responses.beginning() + responses.tokens("a")),
        )
        stream = await creating
        seen = []
        async for event in stream:
            if event.type == "response.output_text.delta":
                await worker.say(End(job.job, job.attempt, "lost", "worker_lost", "it is gone"))
            if event.type != "keepalive":
                seen.append(event)
    *_, error, failed = seen
    assert (error.type, error.code, error.message) == ("error", "worker_lost", "it is gone")
    assert (failed.type, failed.response.error.code) == ("response.failed", "invalid_prompt")
    assert failed.response.id == responses.ID
    numbers = [event.sequence_number for event in seen]
    assert numbers == list(range(7))


async def test_an_error_that_may_be_retried_is_a_server_error() -> None:
    async with serving(heartbeat_first=0.01, queue_timeout=0.5) as proxy:
        async with proxy.http.post(RESPONSES, json=STREAM) as response:
            assert response.status == 200
            *_, error, failed = decoded(await frames(response))
        headers = {"x-heartbeat": "off"}
        async with proxy.http.post(RESPONSES, json=STREAM, headers=headers) as response:
            assert (response.status, response.headers["x-should-retry"]) == (503, "true")
    assert error["code"] == "no_workers"
    assert failed["response"]["error"]["code"] == "server_error"
