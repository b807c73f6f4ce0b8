"""Every method of the parser with every kind of upgrade request, in pieces of all sizes."""

import json
from collections.abc import AsyncIterator, Iterator
from typing import NamedTuple

import pytest
import pytest_asyncio
from harness.tools.parsed import Parsed, parsed

from proxy.edge.guard import MAX_PIPELINED_REQUESTS

METHODS = (
    "DELETE", "GET", "HEAD", "POST", "PUT", "OPTIONS", "TRACE", "COPY", "LOCK", "MKCOL", "MOVE",
    "PROPFIND", "PROPPATCH", "SEARCH", "UNLOCK", "BIND", "REBIND", "UNBIND", "ACL", "REPORT",
    "MKACTIVITY", "CHECKOUT", "MERGE", "M-SEARCH", "NOTIFY", "SUBSCRIBE", "UNSUBSCRIBE", "PATCH",
    "PURGE", "MKCALENDAR", "LINK", "UNLINK", "QUERY", "SOURCE",
)  # fmt: skip
"""The methods of llhttp that are valid in HTTP."""
REFUSED_METHODS = (
    "CONNECT", "PRI", "DESCRIBE", "ANNOUNCE", "SETUP", "PLAY", "PAUSE", "TEARDOWN",
    "GET_PARAMETER", "SET_PARAMETER", "REDIRECT", "RECORD", "FLUSH",
)  # fmt: skip
"""CONNECT, and the methods of HTTP/2 and RTSP that llhttp knows."""

KEY = "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n"
UPGRADES = {
    "none": "",
    "h2c": "Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABk\r\n",
    "TLS": "Upgrade: TLS/1.0\r\nConnection: keep-alive\r\nConnection: upgrade\r\n",
    "two protocols": f"Connection: upgrade\r\nUpgrade: websocket, h2c\r\n{KEY}",
    "two fields": "Connection: upgrade\r\nUpgrade: h2c\r\nUpgrade: foo\r\n",
    "proxy": "Proxy-Connection: Upgrade\r\nUpgrade: foo\r\n",
    "no upgrade": "Connection: Upgrade\r\n",
    "no connection": "Upgrade: h2c\r\n",
    "websocket": f"Connection: Upgrade\r\nUpgrade: WebSocket\r\n{KEY}",
    "websocket for a proxy": f"Proxy-Connection: Upgrade\r\nUpgrade: websocket\r\n{KEY}",
    "websocket without connection": f"Upgrade: websocket\r\n{KEY}",
}
WEBSOCKET_HANDSHAKE = "websocket"
# Requests with a body and one of these are ambiguous.
AMBIGUOUS_WITH_BODY = ("websocket", "websocket for a proxy", "websocket without connection")
BODIES = {
    "none": ("", ""),
    "length": ("Content-Length: 3\r\n", "abc"),
    "chunks": ("Transfer-Encoding: chunked\r\n", "3\r\nabc\r\n0\r\n\r\n"),
}
NEXT = b"GET /next HTTP/1.1\r\nHost: localhost\r\n\r\n"
TARGETS = ("/v1/models", "localhost:443", "http://localhost/v1/models", "*")
REFUSAL = 400
SWITCHED = 101


class Answer(NamedTuple):
    """A response of the application, or the status of a refusal."""

    status: int
    method: str = ""
    path: str = ""
    body: str = ""


FOLLOWING = Answer(200, "GET", "/next")


@pytest_asyncio.fixture(scope="module")
async def guard() -> AsyncIterator[Parsed]:
    async with parsed() as found:
        yield found


def request(method: str, upgrade: str, body: str, target: str = "/v1/models") -> bytes:
    length, content = BODIES[body]
    head = f"{method} {target} HTTP/1.1\r\nHost: localhost\r\n{length}{UPGRADES[upgrade]}\r\n"
    return (head + content).encode()


def expected(method: str, upgrade: str, body: str) -> list[Answer]:
    """Return the expected responses to this request and one that follows it."""
    has_body = body != "none"
    if (
        method in REFUSED_METHODS
        or (has_body and upgrade in AMBIGUOUS_WITH_BODY)
        or (upgrade == WEBSOCKET_HANDSHAKE and method != "GET")
    ):
        return [Answer(REFUSAL)]
    if upgrade == WEBSOCKET_HANDSHAKE:
        # The data that follows is not a WebSocket frame.
        return []
    return [Answer(200, method, "/v1/models", "abc" if has_body else ""), FOLLOWING]


def read(data: bytes, methods: Iterator[str]) -> Iterator[Answer]:
    """Yield the responses in these bytes, to requests with these methods."""
    while data:
        head, _, data = data.partition(b"\r\n\r\n")
        line, *fields = head.decode().lower().split("\r\n")
        found = dict(field.split(": ", 1) for field in fields)
        status = int(line.split()[1])
        method = next(methods, "GET")
        size = 0 if method == "HEAD" and status == 200 else int(found.get("content-length", 0))
        body = data[:size]
        data = data[size:]
        assert len(body) == size
        if status == REFUSAL:
            assert found["connection"] == "close"
            assert json.loads(body)["error"]["code"] == "bad_request"
            assert not data, "a response after a refusal"
        echoed = json.loads(body) if status == 200 and body else {}
        path = "/v1/models" if method == "HEAD" and status == 200 else ""
        yield Answer(
            status,
            method if status == 200 else "",
            echoed.get("path", path),
            echoed.get("body", ""),
        )


@pytest.mark.parametrize("upgrade", UPGRADES)
async def test_the_responses_do_not_depend_on_the_size_of_pieces(
    guard: Parsed, upgrade: str
) -> None:
    for method in (*METHODS, *REFUSED_METHODS):
        for body in BODIES:
            raw = request(method, upgrade, body) + NEXT
            whole = await guard.answer([raw])
            found = [*read(whole.written, iter([method]))]
            wanted = expected(method, upgrade, body)
            if method == "HEAD":
                wanted = [one._replace(body="") if one.method == "HEAD" else one for one in wanted]
            assert found == wanted, raw
            single = await guard.answer([raw[at : at + 1] for at in range(len(raw))])
            assert single.written == whole.written, raw


@pytest.mark.parametrize("method", ["GET", "POST", "CONNECT"])
async def test_the_responses_do_not_depend_on_the_place_of_a_cut(
    guard: Parsed, method: str
) -> None:
    for upgrade in UPGRADES:
        raw = request(method, upgrade, "none" if method == "GET" else "chunks") + NEXT
        whole = await guard.answer([raw])
        for at in range(1, len(raw)):
            cut = await guard.answer([raw[:at], raw[at:]])
            assert cut.written == whole.written, (raw[:at], raw[at:])


@pytest.mark.parametrize("target", TARGETS)
async def test_connect_is_refused_and_later_requests_are_ignored(
    guard: Parsed, target: str
) -> None:
    for upgrade in UPGRADES:
        for body in BODIES:
            answer = await guard.answer([request("CONNECT", upgrade, body, target) + NEXT * 1000])
            assert [*read(answer.written, iter(["CONNECT"]))] == [Answer(REFUSAL)]
            assert b"CONNECT is not supported" in answer.written


async def test_pipelined_upgrades_are_limited_like_other_requests(guard: Parsed) -> None:
    """Each starts a new parser, without unbounded nesting or copying."""
    one = request("POST", "h2c", "length")
    some = await guard.answer([one * MAX_PIPELINED_REQUESTS])
    assert [*read(some.written, iter([]))] == [
        Answer(200, "GET", "/v1/models", "abc")
    ] * MAX_PIPELINED_REQUESTS
    many = await guard.answer([one * 4_000])
    *served, last = read(many.written, iter([]))
    assert last == Answer(REFUSAL)
    # One request is in progress, the others wait.
    assert len(served) == MAX_PIPELINED_REQUESTS + 1


async def test_a_handshake_does_not_overtake_the_response_before_it(guard: Parsed) -> None:
    answer = await guard.answer([NEXT + request("GET", WEBSOCKET_HANDSHAKE, "none")])
    assert [*read(answer.written, iter([]))] == [FOLLOWING, Answer(REFUSAL)]


@pytest.mark.parametrize(
    "behind", [b"\x89\x80\x00\x00\x00\x00", b"\xff" * 100, NEXT], ids=["ping", "garbage", "request"]
)
async def test_data_before_the_response_to_a_handshake_closes_the_connection(
    guard: Parsed, behind: bytes
) -> None:
    """RFC 6455, section 4.1: a pong would overtake the response; other data fails."""
    raw = request("GET", WEBSOCKET_HANDSHAKE, "none")
    for pieces in ([raw], [raw[:40], raw[40:]]):
        assert [*read((await guard.answer(pieces)).written, iter([]))] == [Answer(SWITCHED)]
    for pieces in (
        [raw + behind],
        [raw, behind],
        [raw[:40], raw[40:] + behind],
        [raw, behind[:1], behind[1:]],
    ):
        assert await guard.answer(pieces) == (b"", True)


async def test_a_handshake_that_the_library_does_not_answer_is_refused(guard: Parsed) -> None:
    """Otherwise its connection would stay open, without a limit and a time-out."""
    raw = request("GET", WEBSOCKET_HANDSHAKE, "none")
    for longer in (
        raw.replace(b"/v1", b"/" + b"y" * 9_000),
        raw.replace(b"localhost", b"localhost\r\nX: " + b"y" * 9_000),
    ):
        assert (await guard.answer([longer])).written.startswith(b"HTTP/1.1 431 ")


async def test_connection_close_is_respected_with_an_upgrade(guard: Parsed) -> None:
    upgrade = b"Connection: upgrade, close\r\nUpgrade: h2c\r\n"
    raw = (
        b"POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 3\r\n" + upgrade + b"\r\nabc" + NEXT
    )
    answer = await guard.answer([raw])
    assert [*read(answer.written, iter([]))] == [Answer(200, "GET", "/", "abc")]
    assert answer.is_closing
    old = await guard.answer(
        [b"GET / HTTP/1.0\r\nHost: localhost\r\nConnection: upgrade\r\nUpgrade: h2c\r\n\r\n"]
    )
    assert old.is_closing
    assert guard.connections.size == 0
