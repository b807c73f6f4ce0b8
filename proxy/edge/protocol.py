"""The subclasses of uvicorn's classes: for HTTP, its flow control, and the WebSockets of workers.

The protocol of a client's connection is `GuardProtocol`, which combines those for HTTP.
"""

import asyncio
from typing import Any

from uvicorn._types import ASGISendEvent
from uvicorn.protocols.http.flow_control import FlowControl
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle
from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol

from proxy.api.http import ABORT_EXTENSION
from proxy.channel.runpod.tracking import CONNECTION, Closing, OnClosed
from proxy.edge.head import OLD_HTTP_VERSION
from proxy.edge.http10 import App, without_chunks
from proxy.wire.sockets import enable_keepalive, limit_receive_buffer, limit_unsent_bytes

# Above this a write waits for the client, and what the worker sends meanwhile waits in the mailbox.
WRITE_HIGH_WATERMARK_BYTES = 32 * 1024


class WorkerProtocol(WebSocketsSansIOProtocol):
    """The WebSocket protocol; only workers use it (see `wire.sockets`)."""

    # asyncio's own method has no annotation.
    def connection_made(self, transport) -> None:  # type: ignore[no-untyped-def]  # noqa: ANN001
        super().connection_made(transport)
        wire = transport.get_extra_info("socket")
        limit_unsent_bytes(wire)
        limit_receive_buffer(wire)

    def data_received(self, data: bytes) -> None:
        """Process received data; close the connection if the handshake is invalid.

        The first data is a complete handshake, and nothing may follow before its response
        (RFC 6455). The library neither answers nor closes a handshake that it cannot parse, and
        fails on data that arrives before the response.
        """
        if self.handshake_initiated and not self.handshake_complete:
            self.transport.close()
            return
        super().data_received(data)
        if not self.handshake_initiated:
            self.transport.close()

    async def send(self, message: ASGISendEvent) -> None:
        """Send an event of the application.

        A refused handshake is marked as complete, since uvicorn logs an error otherwise.
        """
        await super().send(message)
        if self.initial_response is not None and self.close_sent:
            self.handshake_complete = True

    def handle_ping(self) -> None:
        """Answer a ping, unless the peer has stopped reading: its pongs would fill the memory."""
        if self.writable.is_set():
            super().handle_ping()
        else:
            self.conn.data_to_send()


class ConnectionFlow(FlowControl):
    """The state of reading and writing. An event exists only while a writer waits, which saves
    1 KB for each connection.
    """

    __slots__ = ("_transport", "_writable", "read_paused", "write_paused")

    def __init__(self, transport: asyncio.Transport) -> None:
        # Not the base's, which creates the event.
        self._transport = transport
        self.read_paused = False
        self.write_paused = False
        self._writable: asyncio.Event | None = None

    async def drain(self) -> None:
        if self.write_paused:
            if self._writable is None:
                self._writable = asyncio.Event()
            await self._writable.wait()

    def pause_writing(self) -> None:
        self.write_paused = True

    def resume_writing(self) -> None:
        self.write_paused = False
        if self._writable is not None:
            self._writable.set()
            self._writable = None


class WatchedProtocol(HttpToolsProtocol):
    """Mixin that reports the end of a connection; the scope of each request refers to it."""

    def __init__(self, *arguments: Any, **uvicorn_arguments: Any) -> None:
        super().__init__(*arguments, **uvicorn_arguments)
        # More than one callback if a reverse proxy carries several workers over one connection.
        self._watchers: tuple[OnClosed, ...] = ()
        # The event loop's time of the last complete response.
        self._answered_at = 0.0

    def watch(self, on_closed: OnClosed) -> None:
        """Call `on_closed` when the connection ends, and keep it open while it is idle."""
        self._watchers += (on_closed,)
        enable_keepalive(self.transport.get_extra_info("socket"))

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self.scope.setdefault("extensions", {})[CONNECTION] = self  # type: ignore[assignment]

    def on_response_complete(self) -> None:
        self._answered_at = self.loop.time()
        super().on_response_complete()

    def timeout_keep_alive_handler(self) -> None:
        if not self._watchers:
            super().timeout_keep_alive_handler()

    def connection_lost(self, exc: Exception | None) -> None:
        watchers = self._watchers
        self._watchers = ()
        if watchers:
            is_busy = not self.cycle.response_complete
            is_ours = not self.cycle.keep_alive
            idle = None if is_busy else self.loop.time() - self._answered_at
            closing = Closing(is_ours, exc is not None, idle)
            for on_closed in watchers:
                on_closed(closing)
        super().connection_lost(exc)


class HttpProtocol(HttpToolsProtocol):
    """Mixin that bounds the write buffer, lets each request abort its connection, and answers
    HTTP/1.0 in its own format.
    """

    # asyncio's own method has no annotation.
    def connection_made(self, transport) -> None:  # type: ignore[no-untyped-def]  # noqa: ANN001
        super().connection_made(transport)
        self.flow = ConnectionFlow(transport)
        transport.set_write_buffer_limits(high=WRITE_HIGH_WATERMARK_BYTES)

    def on_message_begin(self) -> None:
        super().on_message_begin()
        extensions: Any = {ABORT_EXTENSION: self.transport.abort}
        self.scope["extensions"] = extensions

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: App) -> None:
        if cycle.scope["http_version"] == OLD_HTTP_VERSION:
            app = without_chunks(cycle, app)
        super()._start_asgi_task(cycle, app)
