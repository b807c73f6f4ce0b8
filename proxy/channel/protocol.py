"""uvicorn's WebSocket protocol with a socket that holds little."""

from uvicorn._types import ASGISendEvent
from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol

from proxy.wire.sockets import keep_little_under_way, keep_little_unsent


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
