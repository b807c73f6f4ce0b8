"""The protocol of every connection: the guard, and what the relay and the channel of stock workers need from it."""

from uvicorn._types import ASGISendEvent
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol
from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol

from proxy.api.sending import ABORT_EXTENSION
from proxy.channel.runpod.tracking import CONNECTION, Closing, OnClosed
from proxy.edge.guard import GuardProtocol
from proxy.wire.sockets import keep_little_under_way, keep_little_unsent, notice_silence


class WorkerProtocol(WebSocketsSansIOProtocol):
    """The only WebSockets here are the workers' (see `wire.sockets`)."""

    def connection_made(self, transport) -> None:  # type: ignore[no-untyped-def]  # noqa: ANN001 - asyncio's own
        super().connection_made(transport)
        wire = transport.get_extra_info("socket")
        keep_little_unsent(wire)
        keep_little_under_way(wire)

    def data_received(self, data: bytes) -> None:
        """Read what came. The first bytes are a whole handshake, and nothing may follow before its answer (RFC 6455).

        The library neither answers nor closes a handshake that it cannot read, and breaks on early bytes.
        """
        if self.handshake_initiated and not self.handshake_complete:
            self.transport.close()
            return
        super().data_received(data)
        if not self.handshake_initiated:
            self.transport.close()

    async def send(self, message: ASGISendEvent) -> None:
        """Send an event of the application. A refused handshake is complete, else uvicorn logs an error for each."""
        await super().send(message)
        if self.initial_response is not None and self.close_sent:
            self.handshake_complete = True

    def handle_ping(self) -> None:
        """Answer it, unless the other side does not read: the answers to its pings would fill the memory."""
        if self.writable.is_set():
            super().handle_ping()
        else:
            self.conn.data_to_send()


class WatchedProtocol(HttpToolsProtocol):
    """Mixed into the proxy's HTTP protocol; each request's scope names its connection."""

    _watchers: tuple[
        OnClosed, ...
    ] = ()  # more than one where a reverse proxy carries several workers on one line
    _answered_at = 0.0

    def watch(self, on_closed: OnClosed) -> None:
        self._watchers += (on_closed,)
        notice_silence(self.transport.get_extra_info("socket"))

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
        watchers, self._watchers = self._watchers, ()
        if watchers:
            is_busy = not self.cycle.response_complete
            is_ours = not self.cycle.keep_alive
            idle = None if is_busy else self.loop.time() - self._answered_at
            closing = Closing(is_ours, exc is not None, idle)
            for on_closed in watchers:
                on_closed(closing)
        super().connection_lost(exc)


WRITE_BUFFER = (
    32 * 1024
)  # above it a write waits for the client, and what comes meanwhile waits in the mailbox


class HttpProtocol(HttpToolsProtocol):
    """Gives each request the means to cut its connection, and keeps little of an answer in the socket's own buffer."""

    def connection_made(self, transport) -> None:  # type: ignore[no-untyped-def]  # noqa: ANN001 - asyncio's own
        super().connection_made(transport)
        transport.set_write_buffer_limits(high=WRITE_BUFFER)

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self.scope["extensions"] = {ABORT_EXTENSION: self.transport.abort}  # type: ignore[dict-item]


class EdgeProtocol(WatchedProtocol, HttpProtocol, GuardProtocol):
    """HTTP as it is spoken here."""
