"""HTTP as raw bytes, for requests that a regular client cannot send."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from typing import Any

from harness.proxy.server import CHAT, Proxy

TIMEOUT_SECONDS = 20.0
LOOK_BACK = 128 * 1024


@dataclass(frozen=True)
class Answer:
    """A response that was read from a connection."""

    status: int
    headers: dict[bytes, bytes]
    body: bytes


class Wire:
    """One raw connection."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader, self._writer = reader, writer

    async def send(self, data: bytes) -> None:
        """Send data; ignore an end of the connection, which a sender need not notice yet."""
        self._writer.write(data)
        with suppress(ConnectionError):
            await self._writer.drain()

    def has_answer(self) -> bool:
        """Return True if unread data has arrived."""
        return bool(self._reader._buffer)  # type: ignore[attr-defined]

    async def answer(self) -> Answer:
        """Return the next response with its complete body."""
        async with asyncio.timeout(TIMEOUT_SECONDS):
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

    def end(self) -> None:
        """Close the client's half of the connection."""
        self._writer.write_eof()

    async def close(self) -> None:
        self._writer.close()
        with suppress(ConnectionError):
            await self._writer.wait_closed()

    async def heard(self, mark: bytes) -> bytes:
        """Read until `mark` has arrived."""
        data = bytearray()
        async with asyncio.timeout(TIMEOUT_SECONDS):
            while mark not in data[-LOOK_BACK:]:
                part = await self._reader.read(LOOK_BACK // 2)
                assert part, bytes(data[-1000:])
                data += part
        return bytes(data)

    async def rest(self) -> bytes:
        """Return all remaining bytes until the server closes or resets the connection."""
        async with asyncio.timeout(TIMEOUT_SECONDS):
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
    """Connect to the proxy."""
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
    """Return a request that is well-formed except for the arguments."""
    lines = [f"{line} HTTP/{version}", *([f"Host: {host}"] if host is not None else []), *fields]
    return "\r\n".join(lines).encode("latin-1") + b"\r\n\r\n" + body


def json_request(
    body: Any, path: str = CHAT, version: str = "1.1", method: str = "POST", **fields: str
) -> bytes:
    """Return a request; `_` in the name of a field stands for a hyphen."""
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    named = {"host": "localhost", "content-type": "application/json"}
    named |= {name.replace("_", "-"): value for name, value in fields.items()}
    if "transfer-encoding" not in named:
        named["content-length"] = str(len(content))
    head = "".join(f"{name}: {value}\r\n" for name, value in named.items())
    return f"{method} {path} HTTP/{version}\r\n{head}\r\n".encode() + content
