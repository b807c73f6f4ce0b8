"""uvicorn's HTTP protocol with what the relay needs from the connection itself."""

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from proxy.api.sending import ABORT

WRITE_BUFFER = 32 * 1024  # above it a write waits for the client, and what comes meanwhile waits in the mailbox


class HttpProtocol(HttpToolsProtocol):
    """Gives each request the means to cut its connection, and keeps little of an answer in the socket's own buffer."""

    def connection_made(self, transport) -> None:  # type: ignore[no-untyped-def]  # noqa: ANN001 - asyncio's own
        super().connection_made(transport)
        transport.set_write_buffer_limits(high=WRITE_BUFFER)

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self.scope["extensions"] = {ABORT: self.transport.abort}  # type: ignore[dict-item]
