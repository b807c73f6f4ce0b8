"""An event stream of an upstream passes unchanged in every spelling, and its outcome is right."""

import json
from collections.abc import AsyncIterator
from typing import Any

import pytest
import pytest_asyncio
from aiohttp import web
from harness.data import responses
from harness.network.raw_http import request, wire
from harness.proxy.server import CHAT, Proxy, serving
from harness.tools.waiting import until
from harness.worker.process import worker

from proxy.jobs.model import EndpointId

MODEL = "small"
GOOD = b'data: {"choices": [{"index": 0, "delta": {"content": "an \\"error\\": [DONE]"}}]}'
ERROR = (
    b'data: {"error":{"message":"engine failed","type":"InternalServerError","param":null,'
    b'"code":500}}'
)
DONE = b"data: [DONE]"
# Lines of the event that is an error, with their ends; LF ends the others.
SPELLINGS = {
    "as vLLM": ERROR + b"\n\n",
    "CRLF": ERROR + b"\r\n\r\n",
    "CR": ERROR + b"\r\r",
    "mixed": ERROR + b"\n\r",
    "mixed otherwise": ERROR + b"\r\r\n",
    "no space": ERROR.replace(b": ", b":", 1) + b"\n\n",
    "no space, CRLF": ERROR.replace(b": ", b":", 1) + b"\r\n\r\n",
    "named": b"event: error\n" + ERROR + b"\n\n",
    "named without space, CR": b"event:error\r" + ERROR + b"\r\r",
    "named last": ERROR.replace(b"error", b"e") + b"\nevent: error\n\n",
    "after other fields": b"id: 7\n: comment\n" + ERROR + b"\n\n",
    "in two lines": b'data: {\ndata: "error": {"message": "no"}}\n\n',
    "an error beside other fields": b'data: {"id": "1", "choices": [], "error": {"code": 502}}\n\n',
}
LAST = {
    CHAT: DONE + b"\n\n",
    "/v1/completions": DONE + b"\r\n\r\n",
    "/v1/messages": b'event: message_stop\ndata: {"type":"message_stop"}\n\n',
    "/v1/responses": responses.end("hi"),
}


@pytest_asyncio.fixture(scope="module")
async def upstream() -> AsyncIterator[str]:
    """A server that answers with the pieces that the request lists."""
    app = web.Application()
    app.router.add_get("/v1/models", _models)
    app.router.add_post("/v1/{path:.+}", _answer)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    yield f"http://127.0.0.1:{runner.addresses[0][1]}"
    await runner.cleanup()


@pytest_asyncio.fixture(scope="module")
async def proxy(upstream: str) -> AsyncIterator[Proxy]:
    async with serving() as running, worker(running, upstream=upstream):
        yield running


async def _models(_: web.Request) -> web.Response:
    return web.json_response({"object": "list", "data": [{"id": MODEL}]})


async def _answer(asked: web.Request) -> web.StreamResponse:
    fields = await asked.json()
    is_stream = fields.get("stream", False)
    kind = "text/event-stream" if is_stream else "application/json"
    response = web.StreamResponse(headers={"content-type": kind})
    await response.prepare(asked)
    for piece in fields["pieces"]:
        await response.write(piece.encode())
    return response


def body(*pieces: bytes, stream: bool = True) -> dict[str, Any]:
    return {"model": MODEL, "stream": stream, "pieces": [piece.decode() for piece in pieces]}


async def counts(proxy: Proxy) -> tuple[int, int, int]:
    found = await proxy.parts.view.counts(EndpointId("default"))
    return found.completed, found.failed, found.cancelled


@pytest.mark.parametrize("joined", [True, False])
@pytest.mark.parametrize("spelling", SPELLINGS)
async def test_an_error_event_fails_the_job_in_every_spelling(
    proxy: Proxy, spelling: str, joined: bool
) -> None:
    pieces = [GOOD + b"\n\n", SPELLINGS[spelling], DONE + b"\n\n"]
    if joined:
        pieces = [b"".join(pieces)]
    async with proxy.http.post(CHAT, json=body(*pieces)) as response:
        assert await response.read() == b"".join(pieces)
        job = response.headers["x-job-id"]
    async with proxy.http.get(f"/v2/default/status/{job}") as response:
        assert (await response.json())["status"] == "FAILED"


@pytest.mark.parametrize("end", [b"\n", b"\r", b"\r\n"])
async def test_a_stream_that_is_cut_anywhere_is_completed(proxy: Proxy, end: bytes) -> None:
    stream = end.join([GOOD, b"", GOOD, b"", DONE, b"", b""])
    pieces = [stream[start : start + 7] for start in range(0, len(stream), 7)]
    async with proxy.http.post(CHAT, json=body(*pieces)) as response:
        assert await response.read() == stream
        job = response.headers["x-job-id"]
    async with proxy.http.get(f"/v2/default/status/{job}") as response:
        assert (await response.json())["status"] == "COMPLETED"


async def test_every_client_that_has_the_whole_answer_has_a_completed_job(proxy: Proxy) -> None:
    """In every dialect and without a stream: the client closes as soon as it has the last byte."""
    completed, failed, cancelled = await counts(proxy)
    number = 0
    for path, last in LAST.items():
        for is_stream in (True, False):
            pieces = (
                [GOOD + b"\n\n", last] if is_stream else [b'{"choices": []', b" " * 70_000, b"}"]
            )
            content = json.dumps(body(*pieces, stream=is_stream)).encode()
            fields = ["Content-Type: application/json", f"Content-Length: {len(content)}"]
            for _ in range(5):
                number += 1
                async with wire(proxy) as client:
                    await client.send(request(f"POST {path}", *fields, body=content))
                    await client.heard(pieces[-1])
    await until(lambda: not len(proxy.parts.interactive), what="the calls are over")
    assert await counts(proxy) == (completed + number, failed, cancelled)
    async with proxy.http.get("/v2/default/health") as response:
        jobs = (await response.json())["jobs"]
    assert (jobs["completed"], jobs["failed"]) == (completed + number, failed)
