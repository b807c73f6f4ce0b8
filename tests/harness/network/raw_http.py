"""HTTP as bytes: for what no client would send."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass

from harness.proxy.server import Proxy

PATIENCE = 20.0
LOOK_BACK = 128 * 1024


@dataclass(frozen=True)
class Answer:
    """One answer that was read off a connection."""

    status: int
    headers: dict[bytes, bytes]
    body: bytes


class Wire:
    """One connection, as raw as it gets."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader, self._writer = reader, writer

    async def send(self, data: bytes) -> None:
        """Write; that the other end has closed is nothing that the sender would know yet."""
        self._writer.write(data)
        with suppress(ConnectionError):
            await self._writer.drain()

    def has_answer(self) -> bool:
        """Whether something has come that was not read yet."""
        return bool(self._reader._buffer)  # type: ignore[attr-defined]

    async def answer(self) -> Answer:
        """The next answer, with its whole body."""
        async with asyncio.timeout(PATIENCE):
            head = await self._reader.readuntil(b"\r\n\r\n")
            line, *fields = head[:-4].split(b"\r\n")
            headers = {
                name.lower(): value
                for name, _, value in (field.partition(b": ") for field in fields)
            }
            if headers.get(b"transfer-encoding") == b"chunked":
                return Answer(int(line.split()[1]), headers, await self._chunks())
            body = await self._reader.readexactly(int(headers.get(b"content-length", b"0")))
            return Answer(int(line.split()[1]), headers, body)

    async def close(self) -> None:
        """Close the connection."""
        self._writer.close()
        with suppress(ConnectionError):
            await self._writer.wait_closed()

    async def heard(self, mark: bytes) -> bytes:
        """Read until this has come."""
        data = bytearray()
        async with asyncio.timeout(PATIENCE):
            while mark not in data[-LOOK_BACK:]:
                part = await self._reader.read(LOOK_BACK // 2)
                assert part, bytes(data[-1000:])
                data += part
        return bytes(data)

    async def rest(self) -> bytes:
        """All that still comes, until the other end closes; a connection that is reset has ended too."""
        async with asyncio.timeout(PATIENCE):
            with suppress(ConnectionError):
                return await self._reader.read()
            return b""

    async def _chunks(self) -> bytes:
        body = b""
        while size := int((await self._reader.readline()).strip(), 16):
            body += (await self._reader.readexactly(size + 2))[:-2]
        await self._reader.readline()
        return body


@asynccontextmanager
async def wire(proxy: Proxy) -> AsyncIterator[Wire]:
    """A connection to the proxy."""
    host, _, port = proxy.url.removeprefix("http://").partition(":")
    one = Wire(*await asyncio.open_connection(host, int(port)))
    try:
        yield one
    finally:
        await one.close()


def request(
    line: str = "GET /livez",
    *fields: str,
    body: bytes = b"",
    host: str | None = "localhost",
    version: str = "1.1",
) -> bytes:
    """A request that is well-formed, but for what is given."""
    lines = [f"{line} HTTP/{version}", *([f"Host: {host}"] if host is not None else []), *fields]
    return "\r\n".join(lines).encode("latin-1") + b"\r\n\r\n" + body
