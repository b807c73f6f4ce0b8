"""Old and unusual forms of requests: HTTP/1.0, URLs as targets, half-closed connections."""

import json

import pytest
from harness.network.raw_http import Wire, request, wire
from harness.proxy.server import CHAT, Proxy, chat, serving
from harness.proxy.shared import Line
from harness.tools.waiting import until
from pydantic import SecretStr

JSON_BODY = "Content-Type: application/json"
KEY = "client-secret"
BEARER = f"Authorization: Bearer {KEY}"


def posted(body: dict[str, object], *fields: str, version: str = "1.0") -> bytes:
    """Return a chat request."""
    data = json.dumps(body).encode()
    length = f"Content-Length: {len(data)}"
    return request(f"POST {CHAT}", JSON_BODY, length, *fields, body=data, version=version)


async def head_and_rest(connection: Wire) -> tuple[bytes, bytes]:
    """Return the head in lower case and the body of a response that ends with its connection."""
    head, _, body = (await connection.rest()).partition(b"\r\n\r\n")
    return head.lower(), body


async def test_a_stream_for_http_1_0_has_no_chunks(line: Line) -> None:
    asked = {"stream": True, "seed": 1}
    async with wire(line.proxy) as connection:
        await connection.send(posted(chat("x", **asked)))
        head, body = await head_and_rest(connection)
    assert b" 200 " in head
    assert b"transfer-encoding" not in head
    assert b"content-length" not in head
    assert b"connection: close" in head
    events = [event for event in body.split(b"\n\n") if event and not event.startswith(b":")]
    assert all(event.startswith(b"data: ") for event in events)
    assert events[-1] == b"data: [DONE]"
    assert len(events) == 5 + 2


async def test_an_event_stream_of_a_job_for_http_1_0_has_no_chunks(line: Line) -> None:
    async with line.proxy.http.post(
        "/v2/default/runsync", json={"input": {"prompt": "x", "stream": True}}
    ) as response:
        job = (await response.json())["id"]
    target = f"GET /v2/default/stream/{job}?after=0"
    async with wire(line.proxy) as connection:
        await connection.send(request(target, "Accept: text/event-stream", version="1.0"))
        head, body = await head_and_rest(connection)
    assert b"transfer-encoding" not in head
    assert body.startswith((b"id: ", b"event: ", b": "))
    assert b"event: end" in body


@pytest.mark.parametrize("method", ["GET", "HEAD"])
async def test_a_whole_response_for_http_1_0_has_its_length(line: Line, method: str) -> None:
    async with wire(line.proxy) as connection:
        await connection.send(request(f"{method} /v1/models", version="1.0"))
        head, body = await head_and_rest(connection)
    assert b"transfer-encoding" not in head
    length = next(each for each in head.split(b"\r\n") if each.startswith(b"content-length: "))
    assert (len(body) == int(length.split()[1])) == (method == "GET")


async def test_http_1_0_gets_no_100_continue(line: Line) -> None:
    """RFC 9110, section 10.1.1: the expectation is ignored, so the body is read at once."""
    async with wire(line.proxy) as connection:
        await connection.send(posted(chat("x"), "Expect: 100-continue"))
        head, body = await head_and_rest(connection)
    assert head.startswith(b"http/1.1 200 ")
    assert json.loads(body)["choices"]


async def test_http_1_0_needs_no_host_with_a_key_or_on_a_public_route() -> None:
    expected: list[tuple[str, tuple[str, ...], int]] = [
        ("GET /livez", (), 200),
        ("GET /readyz", (), 503),
        ("GET /", (), 200),
        ("GET /v1/models", (BEARER,), 200),
        ("GET /v1/models", (f"api-key: {KEY}",), 200),
        ("GET /v2/default/health", (f"Authorization: {KEY}",), 200),
        ("GET /v1/models", (), 401),
        ("GET /nothing", (), 404),
    ]
    async with serving(api_key=[SecretStr(f"k={KEY}")]) as proxy:
        for target, fields, status in expected:
            async with wire(proxy) as connection:
                await connection.send(request(target, *fields, host=None, version="1.0"))
                assert (await connection.answer()).status == status, (target, fields)


async def test_a_proxy_without_a_key_requires_a_host_or_a_key(line: Line) -> None:
    """The `Host` shows that the request does not come from a web page of another name."""
    given = ((), 400), (("Authorization: Bearer none",), 200), (("Authorization: Bearer",), 400)
    for fields, status in given:
        for target in ("GET /v1/models", "GET /v2/default/health"):
            async with wire(line.proxy) as connection:
                await connection.send(request(target, *fields, host=None, version="1.0"))
                assert (await connection.answer()).status == status, (target, fields)
    async with wire(line.proxy) as connection:
        await connection.send(request("GET /livez", host=None))
        assert (await connection.answer()).status == 400


@pytest.fixture
def own(line: Line) -> str:
    """The host and port of the proxy."""
    return line.proxy.url.removeprefix("http://")


async def answered(proxy: Proxy, target: str, host: str | None, version: str = "1.1") -> int:
    async with wire(proxy) as connection:
        await connection.send(
            request(f"GET {target}", "Proxy-Connection: Keep-Alive", host=host, version=version)
        )
        return (await connection.answer()).status


@pytest.mark.parametrize(
    ("target", "status"),
    [
        ("http://{own}/v1/models", 200),
        ("http://{own}/v1/models?api-version=1", 200),
        ("HTTP://localhost/v2/default/health", 200),
        ("https://{own}/livez", 200),
        ("http://{own}", 200),
        ("http://{own}/", 200),
        ("http://{own}?a=/livez", 200),
        ("http://{own}/nothing", 404),
        # The host in the target counts, not the field.
        ("http://evil.example/v1/models", 403),
        ("http://evil.example:80", 403),
        ("http://", 400),
        ("http:///livez", 400),
        ("http://user@{own}/livez", 400),
        ("http://{own}:1/livez", 400),
        ("http://{own}/livez#x", 400),
        ("http://[::1/livez", 400),
        ("ftp://{own}/livez", 400),
        ("http:/livez", 400),
    ],
)
async def test_a_target_may_be_a_url(line: Line, own: str, target: str, status: int) -> None:
    assert await answered(line.proxy, target.format(own=own), own) == status


async def test_the_host_of_the_target_takes_precedence_over_the_field(line: Line, own: str) -> None:
    """RFC 9112, section 3.2.2. The field must still be valid, and be there in HTTP/1.1."""
    target = f"http://{own}/v1/models"
    assert await answered(line.proxy, target, "evil.example") == 200
    assert await answered(line.proxy, target, None) == 400
    assert await answered(line.proxy, target, "a b") == 400
    assert await answered(line.proxy, target, None, "1.0") == 200


async def test_a_post_with_a_url_as_target_is_served(line: Line, own: str) -> None:
    asked = posted(chat("x"), version="1.1").replace(b"POST /", f"POST http://{own}/".encode())
    async with wire(line.proxy) as connection:
        await connection.send(asked + request(f"GET http://{own}/livez"))
        assert json.loads((await connection.answer()).body)["choices"]
        assert (await connection.answer()).status == 200


async def test_a_refused_url_is_answered_in_the_format_of_its_path(line: Line) -> None:
    async with wire(line.proxy) as connection:
        await connection.send(request("GET http://evil.example/v2/default/health"))
        answer = await connection.answer()
    assert answer.status == 403
    assert isinstance(json.loads(answer.body)["error"], str)


async def test_a_client_that_closes_its_half_of_the_connection_has_left(line: Line) -> None:
    """See docs/decisions: the engine stops, although the client could still read."""
    asked = posted(chat("x", stream=True, max_tokens=100_000, seed=5_000), version="1.1")
    async with wire(line.proxy) as connection:
        await connection.send(asked)
        await connection.heard(b"data: ")
        assert await line.running() == 1
        connection.end()
        await until(lambda: _idle(line), 5, "the engine has stopped")
        assert b"[DONE]" not in await connection.rest()


async def _idle(line: Line) -> bool:
    return not await line.running()
