"""The guard over raw sockets: its refusals, their format, and no effect on other requests."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack

import pytest
import pytest_asyncio
from harness.network.raw_http import Wire, request, wire
from harness.proxy.server import CHAT, Proxy, chat, serving
from harness.proxy.shared import Line
from harness.tools.waiting import until
from pydantic import SecretStr

TIMEOUT_SECONDS = 0.5
JSON_BODY = "Content-Type: application/json"


@pytest_asyncio.fixture(scope="module")
async def quick() -> AsyncIterator[Proxy]:
    """A proxy with short time limits."""
    async with serving(head_timeout=TIMEOUT_SECONDS, body_grace=TIMEOUT_SECONDS) as running:
        yield running


async def refused(connection: Wire) -> tuple[int, str]:
    """Read a refusal and the end of the connection; return its status and its code or message."""
    answer = await connection.answer()
    assert answer.headers[b"connection"] == b"close"
    assert await connection.rest() == b""
    decoded = json.loads(answer.body)["error"]
    return answer.status, decoded if isinstance(decoded, str) else decoded["code"]


@pytest.mark.parametrize(
    ("asked", "status", "code"),
    [
        (request(host=None), 400, "bad_request"),
        (request("GET /livez", "Host: localhost"), 400, "bad_request"),
        (request(host="localhost/health?x="), 400, "bad_request"),
        (request(host="evil.example"), 403, "host_not_allowed"),
        (request("GET localhost/livez"), 400, "bad_request"),
        (request("GET /livez", "A: " + "b" * 40_000), 431, "head_too_large"),
        (request("GET /livez", *["A: b"] * 101), 431, "head_too_large"),
        (
            request(
                f"POST {CHAT}", JSON_BODY, "Content-Encoding: gzip", "Content-Length: 2", body=b"{}"
            ),
            415,
            "",
        ),
        (
            request(f"POST {CHAT}", "Content-Length: 2", "Transfer-Encoding: chunked", body=b"{}"),
            400,
            "bad_request",
        ),
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", 400, "bad_request"),
        (b"GET /livez HTTP/1.1\nHost: localhost\n\n", 400, "bad_request"),
    ],
    ids=lambda value: repr(value[:40]) if isinstance(value, bytes) else "",
)
async def test_an_ambiguous_head_is_refused(
    quick: Proxy, asked: bytes, status: int, code: str
) -> None:
    async with wire(quick) as connection:
        await connection.send(asked)
        found = await refused(connection)
        assert found == (status, code or "unsupported_media_type")


@pytest.mark.parametrize(
    "target", ["/v1/models", "/v2/default/run", "/v1/messages", "localhost:443", "*"]
)
async def test_connect_is_refused_in_the_format_of_its_path(quick: Proxy, target: str) -> None:
    """The parser ends HTTP with any CONNECT, so parsing it again would loop endlessly."""
    async with wire(quick) as connection:
        await connection.send(request(f"CONNECT {target}"))
        answer = await connection.answer()
        assert answer.status == 400
        assert await connection.rest() == b""
    decoded = json.loads(answer.body)
    sentence = "CONNECT is not supported: this server is not a forward proxy."
    if target == "/v2/default/run":
        assert decoded == {"error": sentence}
    else:
        assert decoded["error"]["message"] == sentence
    assert (decoded.get("type") == "error") == (target == "/v1/messages")


async def test_an_unsupported_coding_is_answered_with_the_supported_one(quick: Proxy) -> None:
    """RFC 9110, section 12.5.3: so that a client does not change its content type instead."""
    coded = ("Content-Encoding: gzip", "Content-Length: 2")
    for path in (CHAT, "/v2/default/run"):
        async with wire(quick) as connection:
            await connection.send(request(f"POST {path}", JSON_BODY, *coded, body=b"{}"))
            answer = await connection.answer()
        assert (answer.status, answer.headers[b"accept-encoding"]) == (415, b"identity")
    async with wire(quick) as connection:
        await connection.send(request(f"POST {CHAT}", "Content-Length: 2", body=b"{}"))
        answer = await connection.answer()
    assert answer.status == 415
    assert b"accept-encoding" not in answer.headers


async def test_the_queue_api_has_its_own_error_format(quick: Proxy) -> None:
    async with wire(quick) as connection:
        await connection.send(request("POST /v2/default/run", host="evil.example"))
        status, decoded = await refused(connection)
        sentence = "The host name of the request is not allowed. Allow it with --allowed-host."
        assert (status, decoded) == (403, sentence)


async def test_an_endless_head_is_refused_early(quick: Proxy) -> None:
    async with wire(quick) as connection:
        await connection.send(b"GET /livez HTTP/1.1\r\nHost: localhost\r\nA: ")
        for _ in range(64):
            await connection.send(b"a" * 1024)
        assert (await refused(connection))[1] == "head_too_large"


@pytest.mark.parametrize("sent", [b"G", b"GET /livez HTTP/1.1\r\nHost: local"])
async def test_an_incomplete_head_times_out(quick: Proxy, sent: bytes) -> None:
    async with wire(quick) as connection:
        await connection.send(sent)
        assert await refused(connection) == (408, "request_timeout")


async def test_a_silent_connection_is_closed(quick: Proxy) -> None:
    async with wire(quick) as connection:
        assert await connection.rest() == b""


async def test_a_second_head_has_the_same_time_limit(quick: Proxy) -> None:
    async with wire(quick) as connection:
        await connection.send(request())
        assert (await connection.answer()).status == 200
        await connection.send(b"GET /livez HT")
        assert await refused(connection) == (408, "request_timeout")


async def test_a_body_that_stops_times_out(quick: Proxy) -> None:
    async with wire(quick) as connection:
        await connection.send(request(f"POST {CHAT}", JSON_BODY, "Content-Length: 100", body=b"{"))
        assert await refused(connection) == (408, "request_timeout")


async def test_a_slow_body_with_the_minimum_rate_is_read(quick: Proxy) -> None:
    """It takes twice the time limit of a silent body, but has 1 KB for each second."""
    async with wire(quick) as connection:
        await connection.send(request(f"POST {CHAT}", JSON_BODY, "Content-Length: 20000"))
        for _ in range(20):
            await connection.send(b" " * 1000)
            # The pace of this client, not a wait for the proxy.
            await asyncio.sleep(TIMEOUT_SECONDS / 10)
        answer = await connection.answer()
        assert json.loads(answer.body)["error"]["code"] == "invalid_json"


async def test_a_body_with_the_minimum_rate_still_has_a_time_limit() -> None:
    """Otherwise it would hold its share of the body budget without a limit."""
    async with (
        serving(body_grace=TIMEOUT_SECONDS, body_timeout=2 * TIMEOUT_SECONDS) as proxy,
        wire(proxy) as connection,
    ):
        await connection.send(request(f"POST {CHAT}", JSON_BODY, "Content-Length: 1000000"))
        while proxy.parts.bodies.used or not connection.has_answer():
            await connection.send(b" " * 1000)
            await asyncio.sleep(TIMEOUT_SECONDS / 10)
        assert await refused(connection) == (408, "request_timeout")


async def test_chunks_with_too_much_framing_are_refused(quick: Proxy) -> None:
    async with wire(quick) as connection:
        await connection.send(
            request(f"POST {CHAT}", JSON_BODY, "Transfer-Encoding: chunked", body=b"1;")
        )
        for _ in range(100):
            await connection.send(b"x" * 1024)
        assert (await refused(connection))[0] == 400


async def test_trailers_are_ignored(line: Line) -> None:
    body = json.dumps(chat()).encode()
    trailers = b"%x\r\n%b\r\n0\r\nHost: evil.example\r\nAuthorization: other\r\n\r\n" % (
        len(body),
        body,
    )
    async with wire(line.proxy) as connection:
        await connection.send(
            request(f"POST {CHAT}", JSON_BODY, "Transfer-Encoding: chunked", body=trailers)
        )
        assert (await connection.answer()).status == 200
        await connection.send(request())
        assert (await connection.answer()).status == 200


async def test_the_refusal_of_a_pipelined_request_follows_the_response_before_it(
    line: Line,
) -> None:
    """The refusal must not be written into the middle of a stream."""
    body = json.dumps(chat(stream=True, max_tokens=20, seed=5_000)).encode()
    good = request(f"POST {CHAT}", JSON_BODY, f"Content-Length: {len(body)}", body=body)
    async with wire(line.proxy) as connection:
        await connection.send(good + b"nonsense\r\n\r\n")
        answer = await connection.answer()
        assert answer.status == 200
        assert answer.body.endswith(b"data: [DONE]\n\n")
        assert await refused(connection) == (400, "bad_request")


async def test_pipelined_requests_are_answered_in_order(line: Line) -> None:
    async with wire(line.proxy) as connection:
        await connection.send(
            b"".join(request("GET /v1/models", f"X-Request-ID: r-{number}") for number in range(20))
        )
        for number in range(20):
            assert (await connection.answer()).headers[b"x-request-id"] == b"r-%d" % number


async def test_the_number_of_pipelined_requests_is_limited(line: Line) -> None:
    body = json.dumps(chat(stream=True, max_tokens=200, seed=5_000)).encode()
    good = request(f"POST {CHAT}", JSON_BODY, f"Content-Length: {len(body)}", body=body)
    async with wire(line.proxy) as connection:
        await connection.send(good + request() * 1000)
        assert (await connection.answer()).body.endswith(b"data: [DONE]\n\n")
        answers = (await connection.rest()).count(b"HTTP/1.1 ")
        assert 1 < answers < 100


async def test_a_refusal_does_not_wait_for_the_rest_of_the_body(quick: Proxy) -> None:
    """The request is refused by its declared size; the connection is closed without the body."""
    async with wire(quick) as connection:
        await connection.send(
            request(f"POST {CHAT}", JSON_BODY, f"Content-Length: {10**12}", body=b"{")
        )
        assert (await connection.answer()).status == 413
        assert await connection.rest() == b""


@pytest.mark.parametrize("parts", [1, 2])
async def test_a_request_to_upgrade_to_http_2_is_served_in_http_1(line: Line, parts: int) -> None:
    """Java's client asks for this upgrade in its first request; uvicorn would lose the body."""
    body = json.dumps(chat()).encode()
    wish = (
        "Connection: Upgrade, HTTP2-Settings",
        "Upgrade: h2c",
        "HTTP2-Settings: AAEAAEAAAAIAAAABAAMAAABkAAQBAAAA",
    )
    asked = request(f"POST {CHAT}", JSON_BODY, *wish, f"Content-Length: {len(body)}", body=body)
    async with wire(line.proxy) as connection:
        at = len(asked) // parts
        connections = line.proxy.parts.edge.connections
        await connection.send(asked[:at])
        if parts > 1:
            await until(
                lambda: any(one._received_bytes == at for one in connections._watched),
                5,
                "the first piece has been received",
            )
        await connection.send(asked[at:])
        answer = await connection.answer()
        assert answer.status == 200
        assert json.loads(answer.body)["choices"]
        await connection.send(request())
        assert (await connection.answer()).status == 200


async def test_expect_is_answered_when_the_body_is_read() -> None:
    async with serving(api_key=["k=secret"], endpoint=["default=small"]) as proxy:
        head = request(
            f"POST {CHAT}",
            JSON_BODY,
            "Expect: 100-continue",
            "Content-Length: 2",
            host="any.example",
        )
        async with wire(proxy) as connection:
            await connection.send(head)
            assert (await connection.answer()).status == 401
        async with wire(proxy) as connection:
            await connection.send(head.replace(b"Expect", b"Authorization: secret\r\nExpect"))
            assert (await connection.answer()).status == 100
            await connection.send(b"[]")
            assert (await connection.answer()).status == 400


async def test_bodies_share_a_budget() -> None:
    """A body above the free budget is refused before it is read; ended requests release bytes."""
    async with serving(body_budget=32 * 1024 * 1024, endpoint=["default=small"]) as proxy:
        size = 18 * 1024 * 1024
        async with wire(proxy) as first, wire(proxy) as second:
            await first.send(
                request(f"POST {CHAT}", JSON_BODY, f"Content-Length: {size}", body=b"{")
            )
            await until(lambda: proxy.parts.bodies.used == size, 5, "the first body is counted")
            await second.send(request(f"POST {CHAT}", JSON_BODY, f"Content-Length: {size}"))
            answer = await second.answer()
            assert answer.status == 503
            assert answer.headers[b"retry-after"] == b"5"
            assert json.loads(answer.body)["error"]["code"] == "overloaded"
        await until(lambda: proxy.parts.bodies.used == 0, 5, "the bytes are released")


async def test_one_owner_leaves_half_of_the_budget_to_others() -> None:
    """An owner can have several keys."""
    names = ("alice=alice-secret", "alice=alice-second", "bob=bob-secret")
    keys = [SecretStr(name) for name in names]
    async with serving(
        body_budget=64 * 1024 * 1024, endpoint=["default=small"], api_key=keys
    ) as proxy:
        size = 18 * 1024 * 1024

        def asked(key: str) -> bytes:
            return request(
                f"POST {CHAT}",
                JSON_BODY,
                f"Authorization: {key}",
                f"Content-Length: {size}",
                body=b"{",
            )

        async with wire(proxy) as first, wire(proxy) as second, wire(proxy) as other:
            await first.send(asked("alice-secret"))
            await until(lambda: proxy.parts.bodies.used == size, 5, "alice's first body is counted")
            await second.send(asked("alice-second"))
            assert (await second.answer()).status == 503
            await other.send(asked("bob-secret"))
            await until(lambda: proxy.parts.bodies.used == 2 * size, 5, "bob's body is counted")


async def test_a_silent_connection_is_evicted_for_a_worker() -> None:
    """Silent connections use all connections, including those that are reserved for workers."""
    async with serving(max_connections=20, head_timeout=60.0) as proxy, AsyncExitStack() as stack:
        connections = proxy.parts.edge.connections
        silent = [await stack.enter_async_context(wire(proxy)) for _ in range(connections.limit)]
        await until(lambda: connections.size == connections.limit, 5, "all connections are in use")
        async with wire(proxy) as worker:
            token = f"Authorization: {proxy.parts.token}"
            await worker.send(request("GET /v2/default/ping/w-1?job_id=", token))
            assert (await worker.answer()).status == 200
        # The connection that had been silent longest was closed.
        assert await silent[0].rest() == b""
