"""Calls of a route that the engine of a model does not serve: embeddings of a chat model."""

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import openai
import pytest
import pytest_asyncio
from harness.proxy.server import Proxy, serving
from harness.tools.waiting import until
from harness.worker.puppet import Puppet, hello, puppet

from proxy.wire.frames import Chunk, Credit, End, Head, Model

CARD = b'{"id":"talker"}'
ROUTES = ["/invocations", "/tokenize", "/v1/chat/completions", "/v1/completions"]
NOT_FOUND = b'{"detail":"Not Found"}'


@pytest_asyncio.fixture
async def waiting() -> AsyncIterator[Proxy]:
    """A proxy whose streams get a heartbeat soon."""
    async with serving(heartbeat_first=0.05) as proxy:
        yield proxy


async def test_an_announced_engine_is_not_asked_for_other_routes(proxy: Proxy) -> None:
    """The worker has no free slot, so the answer does not come from its engine."""
    model = Model("talker", CARD, True, ROUTES)
    async with puppet(proxy, hello(models=[model])):
        await joined(proxy, 1)
        for named in ({"model": "talker"}, {"model": ""}, {}):
            status, error = await ask(proxy, "/v1/embeddings", named)
            assert (status, error["code"], error["param"]) == (404, "route_not_served", "model")
            assert error["message"] == (
                "The model `talker` does not support /v1/embeddings. It supports:"
                " /v1/chat/completions, /v1/completions, /tokenize."
            )
        async with proxy.http.post("/v1/messages", json={"model": "talker"}) as response:
            found = await response.json()
        assert (found["type"], found["error"]["type"]) == ("error", "not_found_error")


async def test_openais_client_reads_the_reason(proxy: Proxy) -> None:
    async with puppet(proxy, hello(models=[Model("talker", CARD, True, ROUTES)])):
        await joined(proxy, 1)
        async with proxy.openai() as client:
            with pytest.raises(openai.NotFoundError, match="`talker` does not support"):
                await client.embeddings.create(model="talker", input="x")


@pytest.mark.parametrize(
    ("status", "content_type", "body", "detail"),
    [
        (404, "application/json", NOT_FOUND, "404 (Not Found)"),
        (405, "application/json", b'{"detail":"Method Not Allowed"}', "405 (Method Not Allowed)"),
        (404, "text/plain", b"404 page not found\n", "404 (404 page not found)"),
        (404, "application/json", b"", "404 ()"),
    ],
)
async def test_the_answer_of_an_engine_without_the_route_becomes_an_error_object(
    proxy: Proxy, status: int, content_type: str, body: bytes, detail: str
) -> None:
    """Nothing is known about the routes of an upstream server or of an older worker."""
    async with puppet(proxy, hello(models=[Model("talker", CARD)]), Credit(1, 1)) as one:
        asking = asyncio.create_task(ask(proxy, "/v1/embeddings", {"model": "talker"}))
        await answer(one, status, content_type, body)
        found, error = await asking
    assert (found, error["type"]) == (404, "invalid_request_error")
    assert (error["code"], error["param"]) == ("route_not_served", "model")
    assert "`talker` does not serve /v1/embeddings" in error["message"]
    assert detail in error["message"]


@pytest.mark.parametrize(
    ("status", "body"),
    [
        (404, b'{"error":{"message":"no such model","type":"NotFoundError","code":404}}'),
        (404, b'{"error":"model not found"}'),
        (400, b'{"detail":"bad"}'),
        (501, b'{"detail":"Not Implemented"}'),
        (404, b'{"detail":"%b"}' % (b"x" * 70_000)),
    ],
)
async def test_other_errors_of_an_engine_are_passed_on(
    proxy: Proxy, status: int, body: bytes
) -> None:
    async with puppet(proxy, hello(models=[Model("talker", CARD)]), Credit(1, 1)) as one:
        asking = asyncio.create_task(post(proxy, "/v1/embeddings", {"model": "talker"}))
        await answer(one, status, "application/json", body)
        assert await asking == (status, body)


async def test_a_stream_that_has_begun_ends_with_the_error_object(waiting: Proxy) -> None:
    """A heartbeat has begun it before the worker joined."""
    body = {"model": "talker", "input": "x", "stream": True}
    async with waiting.http.post("/v1/responses", json=body) as response:
        assert (await response.content.readline()).startswith(b": ")
        model = Model("talker", CARD)
        async with puppet(waiting, hello(models=[model]), Credit(1, 1)) as one:
            await answer(one, 404, "application/json", NOT_FOUND)
            text = await response.text()
    assert response.status == 200
    assert '"code":"route_not_served"' in text
    assert "Not Found" in text
    assert '"detail"' not in text


async def test_a_worker_that_announces_nothing_makes_the_routes_unknown(proxy: Proxy) -> None:
    known = hello("w-1", models=[Model("talker", CARD, True, ROUTES)])
    unknown = hello("w-2", models=[Model("talker", CARD)])
    async with puppet(proxy, known), puppet(proxy, unknown, Credit(1, 1)) as one:
        await joined(proxy, 2)
        asking = asyncio.create_task(ask(proxy, "/v1/embeddings", {"model": "talker"}))
        await answer(one, 404, "application/json", NOT_FOUND)
        assert (await asking)[1]["code"] == "route_not_served"


@pytest.mark.parametrize("routes", [["/x"] * 201, ["/" + "x" * 128]])
async def test_too_many_or_too_long_routes_are_refused(proxy: Proxy, routes: list[str]) -> None:
    async with puppet(proxy, hello(models=[Model("talker", CARD, True, routes)])) as one:
        code, reason = await one.closed()
    assert code == 4400
    assert "at most 200 routes" in reason


async def answer(one: Puppet, status: int, content_type: str, body: bytes) -> None:
    """Answer the next job like an engine that has failed."""
    job = await one.job()
    await one.say(
        Head(job.job, job.attempt, status, content_type),
        Chunk(job.job, job.attempt, body),
        End(job.job, job.attempt, "failed", f"http_{status}", "the engine's answer"),
    )


async def ask(proxy: Proxy, path: str, body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
    """Return the status and the error object of the response."""
    status, text = await post(proxy, path, body)
    return status, json.loads(text)["error"]


async def post(proxy: Proxy, path: str, body: dict[str, Any]) -> tuple[int, bytes]:
    async with proxy.http.post(path, json={"input": "x", "prompt": "x"} | body) as response:
        return response.status, await response.read()


async def joined(proxy: Proxy, workers: int) -> None:
    """Wait until this number of workers has joined."""
    await until(lambda: len(list(proxy.parts.fleet)) == workers, 5, "the workers have joined")
