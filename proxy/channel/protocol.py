"""uvicorn's WebSocket protocol with a socket that holds little."""

from typing import Any

from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol

from proxy.wire.sockets import keep_little_under_way, keep_little_unsent


class WorkerProtocol(WebSocketsSansIOProtocol):
    """The only WebSockets here are the workers' (see `wire.sockets`)."""

    def connection_made(self, transport) -> None:  # type: ignore[no-untyped-def]  # noqa: ANN001 - asyncio's own
        super().connection_made(transport)
        wire = transport.get_extra_info("socket")
        keep_little_unsent(wire)
        keep_little_under_way(wire)

    async def send(self, message: Any) -> None:
        """Send, and note that a refusal completes the handshake: else uvicorn logs an error for each one."""
        await super().send(message)
        if message["type"] == "websocket.http.response.body" and not message.get("more_body", False):
            self.handshake_complete = True

    def handle_ping(self) -> None:
        """Answer it, unless the other side does not read: the answers to its pings would fill the memory."""
        if self.writable.is_set():
            super().handle_ping()
        else:
            self.conn.data_to_send()
