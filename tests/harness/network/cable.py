"""A TCP connection between two ends that a test can cut or block."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from urllib.parse import urlsplit

PIECE = 64 * 1024


class Cable:
    """Carries TCP connections to a target."""

    def __init__(self, target: str) -> None:
        parts = urlsplit(target)
        self._host, self._port = parts.hostname, parts.port
        self._writers: set[asyncio.StreamWriter] = set()
        self._flows = asyncio.Event()
        self._flows.set()
        self.url = ""
        # The number of connections so far.
        self.carried = 0
        # The next connections break after this number of bytes in one direction.
        self.breaks_after: list[int] = []

    def cut(self) -> None:
        """Break every connection in both directions; data in flight is lost.

        New connections are accepted.
        """
        for writer in self._writers:
            writer.transport.abort()

    def block(self) -> None:
        """Stop the transfer of data until `flow` is called."""
        self._flows.clear()

    def flow(self) -> None:
        """Resume the transfer of data."""
        self._flows.set()

    async def carry(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Carry one connection."""
        self.carried += 1
        try:
            other_reader, other_writer = await asyncio.open_connection(self._host, self._port)
        except OSError:
            # The target is down.
            writer.transport.abort()
            return
        both = {writer, other_writer}
        self._writers |= both
        try:
            await asyncio.gather(self._pump(reader, other_writer), self._pump(other_reader, writer))
        finally:
            self._writers -= both
            for each in both:
                each.close()

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        passed = 0
        with suppress(ConnectionError):
            while piece := await reader.read(PIECE):
                await self._flows.wait()
                passed += len(piece)
                if self.breaks_after and passed > self.breaks_after[0]:
                    del self.breaks_after[0]
                    self.cut()
                    return
                writer.write(piece)
                await writer.drain()
        writer.close()


@asynccontextmanager
async def cable(target: str) -> AsyncIterator[Cable]:
    """Run a cable to a URL; its own URL is `url`."""
    carrying = Cable(target)
    server = await asyncio.start_server(carrying.carry, "127.0.0.1", 0)
    carrying.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    try:
        yield carrying
    finally:
        server.close()
        carrying.flow()
        carrying.cut()
