"""Request smuggling: bytes that one parser reads as one request, and another as two."""

from collections.abc import Iterator

from harness.network.malformed.case import JOB, LOCAL, SMUGGLED, TOKEN, Case, asks, get, head, post
from harness.network.malformed.framing import CHUNKED, LENGTH, WHOLE

INSIDE = b"0\r\n\r\n" + SMUGGLED
KEY = b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ=="
VERSION = b"Sec-WebSocket-Version: 13"
UPGRADE = (b"Connection: Upgrade", b"Upgrade: websocket")


def both() -> Iterator[Case]:
    """Requests with a length and a transfer coding."""
    yield Case("length and chunked", post(LENGTH, CHUNKED, body=WHOLE))
    yield Case("chunked and length", post(CHUNKED, LENGTH, body=WHOLE))
    length = b"Content-Length: %d" % len(INSIDE)
    yield Case("CL.TE", post(length, CHUNKED, body=INSIDE))
    yield Case(
        "TE.CL",
        post(
            CHUNKED, b"Content-Length: 4", body=b"%x\r\n%b\r\n0\r\n\r\n" % (len(SMUGGLED), SMUGGLED)
        ),
    )
    yield Case("chunked and no length", post(CHUNKED, b"Content-Length: 0", body=INSIDE))
    for name, field in (
        ("an unknown coding", b"Transfer-Encoding: xchunked"),
        ("a coding with a space before the colon", b"Transfer-Encoding : chunked"),
        ("a coding behind a tab", b"Transfer-Encoding:\tchunked"),
        ("a coding in capitals", b"TRANSFER-ENCODING: CHUNKED"),
        ("a coding behind a line's end", b"Transfer-Encoding:\r\n chunked"),
        ("a coding behind a bare LF", b"X: y\nTransfer-Encoding: chunked"),
        ("a coding in quotes", b"Transfer-Encoding: 'chunked'"),
        ("a coding behind a control", b"Transfer-Encoding: \x0cchunked"),
        ("a coding after another", b"Transfer-Encoding: identity\r\nTransfer-Encoding: chunked"),
    ):
        yield Case(f"length and {name}", post(length, field, body=INSIDE))
    yield Case(
        "length and chunked in HTTP/1.0",
        head(b"POST /v2/default/run HTTP/1.0", LOCAL, b"Connection: keep-alive", length, CHUNKED)
        + INSIDE,
    )


def hidden() -> Iterator[Case]:
    """Requests in the body of a rejected request, or after a length that some parsers ignore.

    A rejected request is rejected together with its body.
    """
    length = b"Content-Length: %d" % len(SMUGGLED)
    yield Case(
        "in the body of a method not allowed",
        post(length, body=SMUGGLED, path=b"/livez"),
        stays=True,
    )
    yield Case(
        "in the body of what does not exist",
        post(length, body=SMUGGLED, path=b"/nowhere"),
        stays=True,
    )
    yield Case(
        "in the body of a wrong kind",
        post(length, body=SMUGGLED, path=b"/v1/embeddings"),
        stays=True,
    )
    yield Case("in the body of no JSON", post(length, body=SMUGGLED), stays=True)
    yield Case("in the body of a GET", get(b"/nowhere", length) + SMUGGLED, stays=True)
    chunk = b"%x\r\n%b\r\n0\r\n\r\n" % (len(SMUGGLED), SMUGGLED)
    yield Case("in a chunk of a GET", get(b"/nowhere", CHUNKED) + chunk, stays=True)
    yield Case(
        "in a chunk of what does not exist", post(CHUNKED, body=chunk, path=b"/nowhere"), stays=True
    )
    yield Case("behind a bad head", asks(b"X : y") + SMUGGLED)
    yield Case("behind a bad host", head(b"GET /livez HTTP/1.1", b"Host: a b") + SMUGGLED)
    yield Case("behind a bad length", post(b"Content-Length: +11", body=JOB + SMUGGLED))
    yield Case("behind a huge length", post(b"Content-Length: 1000000000000", body=SMUGGLED))
    yield Case(
        "behind a coding", post(b"Content-Encoding: gzip", b"Content-Length: 0", body=SMUGGLED)
    )
    yield Case("behind a head too large", asks(b"X: " + b"y" * 40_000) + SMUGGLED)
    yield Case("in a value, behind a bare LF", asks(b"X: y\n\n" + SMUGGLED))
    yield Case("in a value, behind a bare CR", asks(b"X: y\r\r" + SMUGGLED))
    yield Case("in the target", get(b"/livez HTTP/1.1\r\nX: y\n\n" + SMUGGLED))


def upgrades() -> Iterator[Case]:
    """Malformed handshakes of a worker."""
    token = b"Authorization: Bearer " + TOKEN.encode()

    def dial(*fields: bytes) -> bytes:
        return get(b"/v2/default/worker", token, *UPGRADE, *fields)

    yield Case("no key", dial(VERSION))
    yield Case("an empty key", dial(VERSION, b"Sec-WebSocket-Key:"))
    yield Case("a short key", dial(VERSION, b"Sec-WebSocket-Key: c2hvcnQ="))
    yield Case("a key that is none", dial(VERSION, b"Sec-WebSocket-Key: \xff\xff"))
    yield Case(
        "two keys of a handshake",
        dial(VERSION, KEY, b"Sec-WebSocket-Key: c2hvcnRlciB0aGFuIHRoYXQ="),
    )
    yield Case("no version of a handshake", dial(KEY))
    yield Case("another version of a handshake", dial(KEY, b"Sec-WebSocket-Version: 8"))
    yield Case("a handshake with a body", dial(KEY, VERSION, LENGTH) + JOB)
    yield Case("a handshake with chunks", dial(KEY, VERSION, CHUNKED) + WHOLE)
    yield Case(
        "a handshake with a request in its body",
        dial(KEY, b"Content-Length: %d" % len(SMUGGLED)) + SMUGGLED,
    )
    yield Case("a bad handshake and a request behind it", dial(VERSION) + SMUGGLED)
    yield Case("a handshake without a token", get(b"/v2/default/worker", *UPGRADE, KEY, VERSION))
    yield Case(
        "a handshake without a token, a request behind",
        get(b"/v2/default/worker", *UPGRADE, KEY, VERSION) + SMUGGLED,
    )
    yield Case("a handshake elsewhere", get(b"/livez", *UPGRADE, KEY, VERSION))
    yield Case(
        "a handshake elsewhere, a request behind it",
        get(b"/nowhere", *UPGRADE, KEY, VERSION) + SMUGGLED,
    )
    yield Case("a handshake of a worker with two hosts", dial(KEY, VERSION, LOCAL))
    yield Case("a handshake with a long field", dial(KEY, VERSION, b"X: " + b"y" * 9_000))
    yield Case("a handshake with a long target", get(b"/" + b"y" * 9_000, *UPGRADE, KEY, VERSION))
    yield Case("a handshake and frames that are none", dial(KEY, VERSION) + b"\xff" * 100)
    fields = (LOCAL, token, *UPGRADE, KEY, VERSION)
    yield Case("a handshake by POST", head(b"POST /v2/default/worker HTTP/1.1", *fields))
    yield Case("a handshake in HTTP/1.0", head(b"GET /v2/default/worker HTTP/1.0", *fields))
