"""The HTTP guard on an in-memory transport, which delivers bytes in exactly these pieces.

A socket would join the pieces. The protocol, its parser and the application are the real ones.
"""

import asyncio
import json
import re
import socket
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from functools import partial
from typing import Any, NamedTuple, cast

import uvicorn
from uvicorn.server import ServerState

from proxy.edge.connections import ConnectionLimiter, Pace
from proxy.edge.context import EdgeContext
from proxy.edge.gate import Table
from proxy.edge.guard import GuardProtocol
from proxy.edge.head import Hosts
from proxy.edge.protocol import WorkerProtocol

# Turns of the event loop without a new byte, after which the application has finished its output.
QUIET_TURNS = 3
MOST_TURNS = 200
DATE = re.compile(rb"\r\nDate: [^\r]*")


class MemoryTransport(asyncio.Transport):
    """A transport that stores its output, and counts the writes.

    `wire` is an unconnected socket for socket options.
    """

    def __init__(self, protocol: asyncio.Protocol, wire: socket.socket) -> None:
        super().__init__(
            {"socket": wire, "peername": ("127.0.0.1", 1), "sockname": ("127.0.0.1", 2)}
        )
        self._protocol: asyncio.BaseProtocol = protocol
        self.written = bytearray()
        self.writes = 0
        self._is_closing = False

    def write(self, data: bytes | bytearray | memoryview) -> None:
        if not self._is_closing:
            self.written += data
            self.writes += 1

    def can_write_eof(self) -> bool:
        return True

    def write_eof(self) -> None:
        pass

    def close(self) -> None:
        self._is_closing = True

    abort = close

    def is_closing(self) -> bool:
        return self._is_closing

    def is_reading(self) -> bool:
        return True

    def pause_reading(self) -> None:
        pass

    def resume_reading(self) -> None:
        pass

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        pass

    def get_protocol(self) -> asyncio.BaseProtocol:
        return self._protocol

    def set_protocol(self, protocol: asyncio.BaseProtocol) -> None:
        self._protocol = protocol


class Written(NamedTuple):
    """The output of the server without dates, and the state of the connection."""

    written: bytes
    is_closing: bool


def configuration(edge: EdgeContext, app: Any) -> uvicorn.Config:
    """Return uvicorn's configuration for connections with the guard."""
    config = uvicorn.Config(
        app, http=cast("type[GuardProtocol]", partial(GuardProtocol, edge)), ws=WorkerProtocol,
        ws_ping_interval=None, lifespan="off", log_config=None, access_log=False,
        server_header=False, date_header=False,
    )  # fmt: skip
    config.load()
    return config


def connect(
    config: uvicorn.Config, state: ServerState, wire: socket.socket
) -> tuple[GuardProtocol, MemoryTransport]:
    """Return a new connection: its protocol and its transport."""
    protocol = config.http_protocol_class(config=config, server_state=state, app_state={})  # type: ignore[union-attr,call-arg,operator]
    transport = MemoryTransport(protocol, wire)
    protocol.connection_made(transport)
    return protocol, transport


class Parsed:
    """Connections whose input is given in pieces."""

    def __init__(self, wire: socket.socket) -> None:
        """Share `wire`, an unconnected socket, between the connections."""
        self._wire = wire
        self.connections = ConnectionLimiter(1_000_000)
        edge = EdgeContext(
            Hosts(is_open=True),
            Pace(),
            self.connections,
            Table().render_error,
            lambda _path, _fields: False,
        )
        self._config = configuration(edge, echo)

    async def answer(self, pieces: Iterable[bytes]) -> Written:
        """Feed these pieces to a new connection, then close it from the client's side."""
        state = ServerState()
        _, transport = connect(self._config, state, self._wire)
        for piece in pieces:
            if transport.is_closing():
                break
            cast("asyncio.Protocol", transport.get_protocol()).data_received(piece)
        seen, quiet = -1, 0
        for _ in range(MOST_TURNS):
            quiet = quiet + 1 if len(transport.written) == seen and not state.tasks else 0
            if quiet == QUIET_TURNS:
                break
            seen = len(transport.written)
            await asyncio.sleep(0)
        found = Written(DATE.sub(b"", transport.written), transport.is_closing())
        cast("asyncio.Protocol", transport.get_protocol()).connection_lost(None)
        await asyncio.sleep(0)
        return found


async def echo(scope: Any, receive: Any, send: Any) -> None:
    """Respond with the request; accept WebSockets."""
    if scope["type"] == "websocket":
        await receive()
        await send({"type": "websocket.accept"})
        return
    body, more = b"", True
    while more:
        message = await receive()
        body, more = body + message.get("body", b""), message.get("more_body", False)
    values = {"method": scope["method"], "path": scope["path"], "body": body.decode("latin-1")}
    data = json.dumps(values).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(data))]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": data})


@asynccontextmanager
async def parsed() -> AsyncIterator[Parsed]:
    """The guard without a network."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as wire:
        yield Parsed(wire)
