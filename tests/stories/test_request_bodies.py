"""Bodies of requests: an empty model, a byte order mark, and the limits of forms and of JSON."""

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import aiohttp
import pytest
import pytest_asyncio
from harness.network.raw_http import request, wire
from harness.proxy.server import CHAT, Proxy, chat, serving
from harness.proxy.shared import Line
from harness.worker.puppet import puppet

from proxy.wire import frames

MESSAGES = [{"role": "user", "content": "x"}]
BODIES: dict[str, dict[str, Any]] = {
    "/v1/chat/completions": {"messages": MESSAGES, "max_tokens": 2},
    "/v1/completions": {"prompt": "x", "max_tokens": 2},
    "/v1/responses": {"input": "x"},
    "/v1/messages": {"messages": MESSAGES, "max_tokens": 2},
    "/v1/messages/count_tokens": {"messages": MESSAGES},
    "/v1/embeddings": {"input": "x"},
    "/tokenize": {"prompt": "x"},
}
FORMS = ("/v1/audio/transcriptions", "/v1/audio/translations")
BYTE_ORDER_MARK = b"\xef\xbb\xbf"
MB = 1024 * 1024


@pytest_asyncio.fixture(scope="module")
async def two() -> AsyncIterator[Proxy]:
    """A proxy with two endpoints and without workers."""
    async with serving(endpoint=["default=small", "big=large"], queue_timeout=0.1) as proxy:
        yield proxy


async def test_an_empty_model_is_answered_by_the_served_model(line: Line) -> None:
    for path in ("/v1/chat/completions", "/v1/completions"):
        for base in ("", "/openai", "/v2/default/openai"):
            body = BODIES[path] | {"model": ""}
            async with line.proxy.http.post(f"{base}{path}", json=body) as response:
                assert (response.status, (await response.json())["model"]) == (200, "scripted")


def form(model: str) -> aiohttp.FormData:
    """Return a form with a file and this model."""
    data = aiohttp.FormData({"model": model})
    data.add_field("file", b"RIFF", filename="a.wav")
    return data


async def test_an_empty_model_counts_as_missing_on_every_route(two: Proxy) -> None:
    """A flat path then leads to the first endpoint. Without a worker, the answer is a 503."""

    async def status(path: str, model: str) -> int:
        is_form = path.endswith(FORMS)
        body: dict[str, Any] = {"data": form(model)} if is_form else {}
        if not is_form:
            body["json"] = next(body for end, body in BODIES.items() if path.endswith(end))
            body["json"] = body["json"] | {"model": model}
        async with two.http.post(path, **body) as response:
            return response.status

    asked = [
        (f"{place}{path}", model, wanted)
        for path in (*BODIES, *FORMS)
        for place, model, wanted in (
            *(("", "", 503), ("/openai", "", 503), ("/v2/big/openai", "", 503)),
            *(("", "other", 404), ("/v2/big/openai", "small", 404)),
        )
    ]
    found = await asyncio.gather(*(status(path, model) for path, model, _ in asked))
    assert found == [wanted for *_, wanted in asked]


async def test_the_engine_receives_json_without_a_byte_order_mark(proxy: Proxy) -> None:
    body = json.dumps(chat(model=None)).encode()
    async with puppet(proxy, slots=1) as one, wire(proxy) as connection:
        marked = BYTE_ORDER_MARK + body
        length = f"Content-Length: {len(marked)}"
        json_type = "Content-Type: application/json; charset=utf-8"
        await connection.send(request(f"POST {CHAT}", json_type, length, body=marked))
        job = await one.job()
        assert job.size == len(body)
        part = await one.hear()
        assert isinstance(part, frames.Body)
        assert part.data == body


@pytest.mark.parametrize(
    ("path", "body", "status"),
    [
        ("/v1/chat/completions", json.dumps(chat("x")).encode(), 200),
        ("/v2/default/runsync", b'{"input": {"prompt": "x"}}', 200),
        ("/v2/default/run", b' {"input": {"prompt": "x"}}', 200),
        ("/v1/chat/completions", b"", 400),
        ("/v1/chat/completions", BYTE_ORDER_MARK + b"{}", 400),
        ("/v2/default/run", b"[]", 400),
    ],
)
async def test_one_byte_order_mark_before_json_is_skipped(
    line: Line, path: str, body: bytes, status: int
) -> None:
    headers = {"Content-Type": "application/json"}
    async with line.proxy.http.post(path, data=BYTE_ORDER_MARK + body, headers=headers) as response:
        assert response.status == status, await response.text()


@pytest.mark.parametrize(
    ("path", "content_type", "limit"),
    [
        ("/v1/audio/transcriptions", "multipart/form-data; boundary=x", 26 * MB),
        ("/audio/translations", "multipart/form-data; boundary=x", 26 * MB),
        ("/v1/chat/completions", "application/json", 20 * MB),
        ("/v1/embeddings", "application/json", 20 * MB),
    ],
)
async def test_a_form_may_be_larger_than_json(
    two: Proxy, path: str, content_type: str, limit: int
) -> None:
    """A body is rejected by its declared length, and otherwise read: here it is cut short."""
    for size, status in ((limit, b"100"), (limit + 1, b"413")):
        fields = (
            f"Content-Type: {content_type}",
            f"Content-Length: {size}",
            "Expect: 100-continue",
        )
        async with wire(two) as connection:
            await connection.send(request(f"POST {path}", *fields))
            assert (await connection.heard(b"\r\n\r\n")).startswith(b"HTTP/1.1 " + status)
