"""Slow clients: each sends the beginning of a request, and then one byte at a time."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import cast
from urllib.parse import urlsplit

HALF_HEAD = b"GET /livez HTTP/1.1\r\nHost: localhost\r\nX-Slow: "
HALF_BODY = (
    b"POST /v2/default/run HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    b'Content-Length: 20000\r\n\r\n{"input":"'
)
# Concurrent connection attempts, well below the backlog.
DIALS = 128
# The parts of a second; in each of them, another group of clients sends its byte.
SLICES = 10


class Drip(asyncio.Protocol):
    """A slow client."""

    def __init__(self, start: bytes) -> None:
        self._start, self._loop = start, asyncio.get_running_loop()
        self._transport: asyncio.Transport | None = None
        self._began = 0.0
        self.received = b""
        # The seconds until the server closed the connection.
        self.lasted: float | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Send the beginning of the request."""
        self._transport = cast("asyncio.Transport", transport)
        self._began = self._loop.time()
        self._transport.write(self._start)

    def data_received(self, data: bytes) -> None:
        """Store the received bytes."""
        self.received += data

    def connection_lost(self, _: Exception | None) -> None:
        """Record the time of the disconnect."""
        self.lasted = self._loop.time() - self._began

    def send(self) -> None:
        """Send one more byte."""
        if self._transport is not None and not self._transport.is_closing():
            self._transport.write(b"a")

    def leave(self) -> None:
        """Close the connection."""
        if self._transport is not None:
            self._transport.abort()


@asynccontextmanager
async def dripping(url: str, starts: list[bytes]) -> AsyncIterator[list[Drip]]:
    """Connect a client for each of these beginnings; each sends one byte a second."""
    parts, loop, gate = urlsplit(url), asyncio.get_running_loop(), asyncio.Semaphore(DIALS)
    drips = [Drip(start) for start in starts]

    async def dial(drip: Drip) -> None:
        async with gate:
            await loop.create_connection(lambda: drip, parts.hostname, parts.port)

    async def drop() -> None:
        while True:
            for part in range(SLICES):
                for drip in drips[part::SLICES]:
                    drip.send()
                await asyncio.sleep(1 / SLICES)

    dropping = asyncio.create_task(drop())
    try:
        await asyncio.gather(*map(dial, drips))
        yield drips
    finally:
        dropping.cancel()
        with suppress(asyncio.CancelledError):
            await dropping
        for drip in drips:
            drip.leave()
