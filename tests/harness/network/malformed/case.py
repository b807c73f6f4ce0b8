"""What one malformed request is, and how the usual parts of one are written."""

from typing import NamedTuple

TOKEN = "token-of-the-malformed"
"""The worker token of the proxy that they are sent to: some would be let in but for what is wrong with them."""
JOB = b'{"input":1}'
LOCAL = b"Host: localhost"
JSON = b"Content-Type: application/json"
SMUGGLED = (
    b"POST /v2/default/run HTTP/1.1\r\nHost: localhost\r\nContent-Length: 11\r\n%b\r\n\r\n%b"
    % (JSON, JOB)
)
"""A request that must never be taken for one: it would leave a job in the queue."""


class Case(NamedTuple):
    """Bytes that must not be served. The answer is a refusal and a closed connection, or only the second."""

    name: str
    raw: bytes
    stays: bool = False  # plain HTTP, though refused: the connection may stay open
    ends: bool = False  # the client sends nothing more, and says so
    odd: bool = False  # everybody reads it in the same way, and the standard lets one be kind: it may be served


def head(line: bytes, *fields: bytes) -> bytes:
    """A head of these lines."""
    return b"".join(each + b"\r\n" for each in (line, *fields)) + b"\r\n"


def get(target: bytes, *fields: bytes) -> bytes:
    """A request for a target, which but for that would be served."""
    return head(b"GET %b HTTP/1.1" % target, LOCAL, *fields)


def asks(*fields: bytes) -> bytes:
    """A request without a body and with these fields, which but for them would be served."""
    return get(b"/livez", *fields)


def post(*fields: bytes, body: bytes = b"", path: bytes = b"/v2/default/run") -> bytes:
    """A job, whose length these fields tell."""
    return head(b"POST %b HTTP/1.1" % path, LOCAL, JSON, *fields) + body


def shown(raw: bytes, longest: int = 40) -> str:
    """Bytes, as a case's name has them."""
    text = raw.decode("latin-1").encode("unicode_escape").decode()
    return text if len(text) <= longest else f"{text[:longest]}... ({len(raw)} bytes)"
