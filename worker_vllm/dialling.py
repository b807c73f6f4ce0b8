"""Open the WebSocket to the proxy, and tell a refusal, which a person must mend, from trouble that passes."""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import TypeAlias
from urllib.parse import urlsplit

import structlog
from websockets.asyncio.client import ClientConnection
from websockets.exceptions import InvalidHandshake, InvalidStatus, InvalidURI

from proxy.wire.frames import SOCKET_BYTES
from proxy.wire.sockets import keep_little_unsent

OPEN_SECONDS = 10.0
PING_SECONDS = 5.0  # a dead proxy is noticed within ping and pong, which is one lease
PONG_SECONDS = 10.0
CLOSE_SECONDS = 2.0
WRITE_BYTES = 64 * 1024  # what the socket may hold back; the rest waits in the outbox, where lanes take turns
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
"""Open a WebSocket, as `websockets.asyncio.client.connect` does."""


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


class RefusedError(Exception):
    """The proxy does not want this worker; its text is one line that says why."""


async def dial(link: Link, closing: asyncio.Event, connect: Connect) -> ClientConnection | None:
    """An open connection, or None when the proxy is out of reach for now or `closing` is set; else `RefusedError`."""
    log = structlog.get_logger()
    try:
        socket = await connect(
            link.url,
            additional_headers={"Authorization": f"Bearer {link.token}"},
            user_agent_header="vllm-serverless-worker",
            compression=None,
            max_size=SOCKET_BYTES,
            open_timeout=OPEN_SECONDS,
            ping_interval=PING_SECONDS,
            ping_timeout=PONG_SECONDS,
            close_timeout=CLOSE_SECONDS,
            write_limit=WRITE_BYTES,
            proxy=None if urlsplit(link.url).hostname in LOOPBACK else True,
        )
    except InvalidStatus as error:
        status, reason = error.response.status_code, bytes(error.response.body or b"")[:500].decode(errors="replace")
        if status in FINAL_STATUS:
            raise RefusedError(_line(link, status, reason.strip())) from None
        log.warning("channel.unreachable", url=link.url, status=status, reason=reason.strip())
    except InvalidURI as error:
        raise RefusedError(f"WORKER_CONNECT is no address to dial: {error}") from None
    except (OSError, TimeoutError, InvalidHandshake) as error:
        log.warning("channel.unreachable", url=link.url, error=str(error) or type(error).__name__)
    else:
        keep_little_unsent(socket.transport.get_extra_info("socket"))
        if not closing.is_set():
            return socket
        await socket.close()
    return None


def refusal_of_close(socket: ClientConnection) -> RefusedError | None:
    """What a closed connection says about us, if it was closed because of us."""
    code = socket.close_code
    if code is None or code not in FINAL_CODES:
        return None
    return RefusedError(socket.close_reason or ADVICE.get(code - 4000, f"the proxy closed the connection with {code}"))


def _line(link: Link, status: int, reason: str) -> str:
    return f"{link.url} answered {status}: {reason or ADVICE[status]}"
