"""Open the WebSocket to the proxy, and tell a refusal, which a person must resolve, from a failure that passes."""

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import TypeAlias
from urllib.parse import urlsplit

import structlog
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import InvalidStatus, InvalidURI

from proxy.wire.frames import SOCKET_BYTES
from proxy.wire.sockets import limit_unsent_bytes

OPEN_SECONDS = 10.0
PING_SECONDS = 5.0  # a dead proxy is noticed within ping and pong, which is one lease
PONG_SECONDS = 10.0
CLOSE_SECONDS = 2.0
WRITE_BYTES = (
    64 * 1024
)  # what the socket may hold back; the rest waits in the outbox, where lanes take turns
NORMAL = 1000
SHOWN = 200  # characters of what a server answers
REDIRECTS = range(300, 400)
FINAL_STATUS = (401, 403, 404, 409, 426)
FINAL_CODES = range(4400, 4500)
LOOPBACK = ("127.0.0.1", "localhost", "::1")
ADVICE = {
    401: "the proxy does not accept WORKER_TOKEN (`vllm-serverless token` prints the right one)",
    403: "this token may not work for this endpoint: see WORKER_ENDPOINT and WORKER_TOKEN",
    404: "the proxy has no such endpoint: see WORKER_CONNECT and WORKER_ENDPOINT",
    409: "the proxy's endpoint does not go with this worker",
    426: "the proxy speaks another version of the worker protocol: update the older of the two",
}


Connect: TypeAlias = Callable[..., Awaitable[ClientConnection]]
"""Open a WebSocket, as `Handshake` does."""


@dataclass(frozen=True, slots=True)
class Dialler:
    """The means of dialling: a simulation has others than the network and chance."""

    connect: Connect
    uniform: Callable[[float, float], float]  # a random number between two


@dataclass(frozen=True, slots=True)
class Link:
    """Where the proxy is, and who calls."""

    url: str
    token: str = field(repr=False)
    worker: str


class DialRefusedError(Exception):
    """The proxy does not want this worker; its text is one line that says why."""

    def __init__(self, message: str, *, by_handshake: bool = False) -> None:
        super().__init__(message)
        self.by_handshake = (
            by_handshake  # by an HTTP status, which a server in front of the proxy can answer too
        )


class ConnectionLostError(Exception):
    """The connection cannot be used, or was not opened; its text says what happened."""


async def dial(
    link: Link, closing: asyncio.Event, connect: Connect, open_seconds: float = OPEN_SECONDS
) -> ClientConnection | None:
    """Open a connection; None when the proxy is out of reach for now or `closing` is set.

    Final, as `DialRefusedError`: an address that cannot be dialled, and an answer with one of `FINAL_STATUS`. All
    else that can go wrong between here and the proxy may be over at the next try.
    """
    try:
        handshake = _handshake(link, connect, open_seconds)
    except (InvalidURI, ValueError) as error:  # a port out of range is a ValueError
        raise DialRefusedError(f"WORKER_CONNECT is not an address to dial: {error}") from None
    try:
        with losing_connection():
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


@contextmanager
def losing_connection() -> Iterator[None]:
    """Raise `ConnectionLostError` for whatever the WebSocket library, its event loop or TLS raises in here."""
    try:
        yield
    except (
        Exception
    ) as error:  # each of the three adds kinds of its own, and none is a reason to end
        raise ConnectionLostError(_sentence(error)) from error


async def hang_up(socket: ClientConnection, code: int = NORMAL, reason: str = "") -> None:
    """Close a connection, which may be lost already."""
    with suppress(ConnectionLostError), losing_connection():
        await socket.close(code, reason)


def refusal_of_close(socket: ClientConnection) -> DialRefusedError | None:
    """What a closed connection says about us, if it was closed because of us."""
    code = socket.close_code
    if code is None or code not in FINAL_CODES:
        return None
    return DialRefusedError(
        socket.close_reason
        or ADVICE.get(code - 4000, f"the proxy closed the connection with {code}")
    )


class Handshake(connect):
    """Follows no redirect. A login or status page elsewhere must not answer for the proxy, as 404 for example."""

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
        ping_interval=PING_SECONDS,
        ping_timeout=PONG_SECONDS,
        close_timeout=CLOSE_SECONDS,
        write_limit=WRITE_BYTES,
        proxy=None if urlsplit(link.url).hostname in LOOPBACK else True,
    )


def _refusal_of_handshake(link: Link, error: BaseException | None) -> DialRefusedError | None:
    if not isinstance(error, InvalidStatus) or error.response.status_code not in FINAL_STATUS:
        return None
    return DialRefusedError(f"{link.url} answered {_answer(error)}", by_handshake=True)


def _sentence(error: Exception) -> str:
    """An error in one line, with its cause: `InvalidMessage` alone does not say that the connection was closed."""
    if isinstance(error, InvalidStatus):
        return f"answered {_answer(error)}"
    text = str(error) or type(error).__name__
    return (
        f"{text} ({error.__cause__})"
        if error.__cause__ is not None and str(error.__cause__)
        else text
    )


def _answer(error: InvalidStatus) -> str:
    """Status and reason of an answer that is not the proxy's, or is its refusal."""
    response = error.response
    places = response.headers.get_all("Location")
    if places and response.status_code in REDIRECTS:
        return f"{response.status_code}: redirects to {places[0][:SHOWN]}; set WORKER_CONNECT to where the proxy is"
    said = bytes(response.body or b"")[:SHOWN].decode(errors="replace").strip()
    return f"{response.status_code}: {said or ADVICE.get(response.status_code, response.reason_phrase)}"
