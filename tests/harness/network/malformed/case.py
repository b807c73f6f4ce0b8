"""The definition of a malformed request, and builders for its usual parts."""

from typing import NamedTuple

TOKEN = "token-of-the-malformed"
"""The worker token of the receiving proxy: some requests would be accepted if well-formed."""
JOB = b'{"input":1}'
LOCAL = b"Host: localhost"
JSON = b"Content-Type: application/json"
SMUGGLED = (
    b"POST /v2/default/run HTTP/1.1\r\nHost: localhost\r\nContent-Length: 11\r\n%b\r\n\r\n%b"
    % (JSON, JOB)
)
"""A request that must never be parsed as one: it would leave a job in the queue."""


class Case(NamedTuple):
    """Bytes that must be rejected: with a response and a closed connection, or only the latter."""

    name: str
    raw: bytes
    # The connection may stay open, because the request is plain HTTP although it is rejected.
    stays: bool = False
    # The client closes its side after the request.
    ends: bool = False
    # The request may be served: all parsers read it in the same way, and the standard allows
    # leniency.
    odd: bool = False


def head(line: bytes, *fields: bytes) -> bytes:
    """Return a head of these lines."""
    return b"".join(each + b"\r\n" for each in (line, *fields)) + b"\r\n"


def get(target: bytes, *fields: bytes) -> bytes:
    """Return a request for a target that is otherwise valid."""
    return head(b"GET %b HTTP/1.1" % target, LOCAL, *fields)


def asks(*fields: bytes) -> bytes:
    """Return a request without a body that is valid except for these fields."""
    return get(b"/livez", *fields)


def post(*fields: bytes, body: bytes = b"", path: bytes = b"/v2/default/run") -> bytes:
    """Return a job whose length is given by these fields."""
    return head(b"POST %b HTTP/1.1" % path, LOCAL, JSON, *fields) + body


def shown(raw: bytes, longest: int = 40) -> str:
    """Return bytes as text for the name of a case."""
    text = raw.decode("latin-1").encode("unicode_escape").decode()
    return text if len(text) <= longest else f"{text[:longest]}... ({len(raw)} bytes)"
