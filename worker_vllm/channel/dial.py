"""Open the WebSocket to the proxy, and distinguish final refusals from temporary failures.

An operator has to resolve a refusal, so it ends the worker. After any other failure the worker
dials again.
"""

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import TypeAlias
from urllib.parse import urlsplit

import structlog
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import InvalidStatus, InvalidURI

from proxy.wire.frames import SOCKET_BYTES
from proxy.wire.sockets import limit_unsent_bytes
from worker_vllm.foreign import ForeignErrors

OPEN_TIMEOUT_SECONDS = 10.0
# A dead proxy is detected within ping interval and ping timeout together. A proxy that was only
# stopped for a shorter time keeps its connections: a new one would lose the output that the old one
# has accepted and not delivered.
PING_INTERVAL_SECONDS = 5.0
PING_TIMEOUT_SECONDS = 25.0
CLOSE_TIMEOUT_SECONDS = 2.0
# A proxy that accepts no data for this long is dead.
STALL_SECONDS = PING_INTERVAL_SECONDS + PING_TIMEOUT_SECONDS
# High watermark of the socket's write buffer. The rest waits in the outbox, where lanes take turns.
WRITE_BUFFER_BYTES = 64 * 1024
CLOSE_CODE_NORMAL = 1000
# A connection that is given up, while the worker goes on: its runs continue on the next one.
CLOSE_CODE_LOST = 1011
# Longest part of a server's response that a message quotes.
RESPONSE_EXCERPT_LENGTH = 200
REDIRECT_STATUSES = range(300, 400)
REFUSAL_STATUSES = (401, 403, 404, 409, 426)
REFUSAL_CLOSE_CODES = range(4400, 4500)
LOOPBACK_HOSTS = ("127.0.0.1", "localhost", "::1")
REMEDIES = {
    401: "the proxy does not accept WORKER_TOKEN; run `vllm-serverless token` to print the token",
    403: "this token is not valid for this endpoint; check WORKER_ENDPOINT and WORKER_TOKEN",
    404: "the proxy has no such endpoint; check WORKER_CONNECT and WORKER_ENDPOINT",
    409: (
        "another worker has this id, or the endpoint serves another model;"
        " check WORKER_ID, WORKER_MODEL and WORKER_ENDPOINT"
    ),
    426: "the proxy uses another version of the worker protocol; update the older of the two",
}
NOT_GIVEN_MESSAGE = (
    "no worker token is given; set WORKER_TOKEN or --token-file to the token that"
    " `vllm-serverless token` prints on the machine of the proxy"
)

Connect: TypeAlias = Callable[..., Awaitable[ClientConnection]]
"""Open a WebSocket, with the arguments of `websockets.asyncio.client.connect`."""


@dataclass(frozen=True, slots=True)
class Dialler:
    """Access to the network and to randomness, which a simulation replaces."""

    connect: Connect
    # Return a random number between two.
    uniform: Callable[[float, float], float]


@dataclass(frozen=True, slots=True)
class Link:
    """The WebSocket URL of the proxy, the token, and the id and process of the worker that dials.

    `instance`: see `Hello`.
    """

    url: str
    token: str = field(repr=False)
    worker: str
    instance: str = ""


class DialRefusedError(Exception):
    """The proxy rejects this worker. The text is one line with the reason.

    `by_handshake`: the refusal is an HTTP status, which can also come from a server in front of
    the proxy.
    """

    def __init__(self, message: str, *, by_handshake: bool = False) -> None:
        super().__init__(message)
        self.by_handshake = by_handshake


class ConnectionLostError(Exception):
    """The connection could not be opened or is no longer usable. The text is the reason."""


def _sentence(error: Exception) -> str:
    """Describe an error and its cause in one line.

    `InvalidMessage`, for example, does not say by itself that the connection was closed.
    """
    if isinstance(error, InvalidStatus):
        return f"answered {_response_text(error)}"
    text = str(error) or type(error).__name__
    cause = str(error.__cause__) if error.__cause__ is not None else ""
    return f"{text} ({cause})" if cause else text


losing_connection = ForeignErrors(ConnectionLostError, _sentence)
"""Raises `ConnectionLostError` for everything that goes wrong in a `with` block.

The WebSocket library, its event loop and TLS each raise kinds of their own, and none of them is a
reason to end the worker.
"""


async def dial(
    link: Link,
    closing: asyncio.Event,
    connect: Connect,
    open_seconds: float = OPEN_TIMEOUT_SECONDS,
) -> ClientConnection | None:
    """Open a connection; return None if the proxy is unreachable for now or `closing` is set.

    Raises `DialRefusedError` for a malformed address and for a response with one of
    `REFUSAL_STATUSES`. Every other failure between here and the proxy may be temporary.
    """
    try:
        handshake = _handshake(link, connect, open_seconds)
    except (InvalidURI, ValueError) as error:
        # A port out of range is a ValueError.
        raise DialRefusedError(f"WORKER_CONNECT is not a valid address: {error}") from None
    try:
        with losing_connection:
            socket = await handshake
            limit_unsent_bytes(socket.transport.get_extra_info("socket"))
    except ConnectionLostError as lost:
        refusal = _refusal_of_handshake(link, lost.__cause__)
        if refusal is not None:
            raise refusal from None
        structlog.get_logger().warning("channel.unreachable", url=link.url, error=str(lost))
        return None
    if closing.is_set():
        await hang_up(socket)
        return None
    return socket


async def hang_up(
    socket: ClientConnection, code: int = CLOSE_CODE_NORMAL, reason: str = ""
) -> None:
    """Close a connection, which may be lost already."""
    with suppress(ConnectionLostError), losing_connection:
        await socket.close(code, reason)


def refusal_of_close(socket: ClientConnection) -> DialRefusedError | None:
    """Return the refusal that a close code stands for, or None if it does not stand for one."""
    code = socket.close_code
    if code is None or code not in REFUSAL_CLOSE_CODES:
        return None
    remedy = REMEDIES.get(code - 4000, f"the proxy closed the connection with code {code}")
    return DialRefusedError(socket.close_reason or remedy)


class Handshake(connect):
    """An opening handshake that follows no redirect.

    Otherwise a login or status page on another server could answer in place of the proxy, for
    example with 404.
    """

    def process_redirect(self, exc: Exception) -> Exception:
        return exc


def _handshake(link: Link, connect: Connect, open_seconds: float) -> Awaitable[ClientConnection]:
    return connect(
        link.url,
        additional_headers={"Authorization": f"Bearer {link.token}"},
        user_agent_header="vllm-serverless-worker",
        compression=None,
        max_size=SOCKET_BYTES,
        open_timeout=open_seconds,
        ping_interval=PING_INTERVAL_SECONDS,
        ping_timeout=PING_TIMEOUT_SECONDS,
        close_timeout=CLOSE_TIMEOUT_SECONDS,
        write_limit=WRITE_BUFFER_BYTES,
        proxy=None if urlsplit(link.url).hostname in LOOPBACK_HOSTS else True,
    )


def _refusal_of_handshake(link: Link, error: BaseException | None) -> DialRefusedError | None:
    if not isinstance(error, InvalidStatus):
        return None
    if error.response.status_code not in REFUSAL_STATUSES:
        return None
    if error.response.status_code == HTTPStatus.UNAUTHORIZED and not link.token:
        return DialRefusedError(f"{link.url} answered 401: {NOT_GIVEN_MESSAGE}", by_handshake=True)
    return DialRefusedError(f"{link.url} answered {_response_text(error)}", by_handshake=True)


def _response_text(error: InvalidStatus) -> str:
    """Describe the status and reason of a response other than 101 Switching Protocols."""
    response = error.response
    status = response.status_code
    locations = response.headers.get_all("Location")
    if locations and status in REDIRECT_STATUSES:
        target = locations[0][:RESPONSE_EXCERPT_LENGTH]
        return f"{status}: redirects to {target}; set WORKER_CONNECT to the proxy's own URL"
    excerpt = bytes(response.body or b"")[:RESPONSE_EXCERPT_LENGTH]
    text = excerpt.decode(errors="replace").strip()
    return f"{status}: {text or REMEDIES.get(status, response.reason_phrase)}"
