"""A raw HTTP client on simulated connections: one request per connection."""

import asyncio
import json
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

from sim.machines import ADDRESS, KEYS

# A client without an answer gives up after this time. No timeout of the proxy is longer.
TIMEOUT_SECONDS = 150.0
READ_BYTES = 65_536


class BrokenError(Exception):
    """The connection ended before the response did. `is_excused`: a fault has caused it."""

    def __init__(self, why: str, *, is_excused: bool) -> None:
        super().__init__(why)
        self.is_excused = is_excused


@dataclass(slots=True)
class Response:
    """A response whose head has arrived."""

    status: int
    headers: dict[str, str]
    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter

    async def pieces(self) -> AsyncIterator[bytes]:
        """Yield the body as it arrives. Raises `BrokenError` if it is incomplete."""
        with _breaking(self.writer):
            if self.headers.get("transfer-encoding") == "chunked":
                while size := int(await _line(self.reader), 16):
                    data = await self.reader.readexactly(size + 2)
                    yield data[:-2]
                await _line(self.reader)
            else:
                yield await self.reader.readexactly(int(self.headers.get("content-length", 0)))

    async def json(self) -> Any:
        """Read the whole body, close the connection, and return the parsed body."""
        async with asyncio.timeout(TIMEOUT_SECONDS):
            body = b"".join([piece async for piece in self.pieces()])
        self.close()
        return json.loads(body)

    def close(self) -> None:
        self.writer.close()

    def abort(self) -> None:
        """Leave at once."""
        self.writer.transport.abort()


@dataclass(slots=True)
class Call:
    """A request on an open connection, which is sent later."""

    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter
    data: bytes

    def send(self) -> None:
        """Send the whole request."""
        self.writer.write(self.data)

    def abort(self) -> None:
        """Leave at once."""
        self.writer.transport.abort()

    async def response(self) -> Response:
        """Wait for the head of the response. Raises `BrokenError`."""
        with _breaking(self.writer):
            async with asyncio.timeout(TIMEOUT_SECONDS):
                status = int((await _line(self.reader)).split()[1])
                headers = {}
                while line := await _line(self.reader):
                    name, _, value = line.decode().partition(":")
                    headers[name.lower()] = value.strip()
        return Response(status, headers, self.reader, self.writer)


async def connect(method: str, path: str, owner: str, body: Any = None) -> Call:
    """Open a connection for a request. Raises `BrokenError`."""
    try:
        reader, writer = await asyncio.open_connection(*ADDRESS)
    except OSError as error:
        raise BrokenError(f"cannot connect: {error}", is_excused=True) from error
    data = b"" if body is None else json.dumps(body).encode()
    head = (
        f"{method} {path} HTTP/1.1\r\nHost: {ADDRESS[0]}:{ADDRESS[1]}\r\n"
        f"Authorization: Bearer {KEYS[owner]}\r\nConnection: close\r\n"
        f"Content-Type: application/json\r\nContent-Length: {len(data)}\r\n\r\n"
    )
    return Call(reader, writer, head.encode() + data)


async def request(method: str, path: str, owner: str, body: Any = None) -> Response:
    """Send a request and return its response. Raises `BrokenError`."""
    call = await connect(method, path, owner, body)
    call.send()
    return await call.response()


async def _line(reader: asyncio.StreamReader) -> bytes:
    return (await reader.readuntil(b"\r\n"))[:-2]


class _breaking:  # noqa: N801 - used like a function
    """Raises `BrokenError` for the end of a connection."""

    def __init__(self, writer: asyncio.StreamWriter) -> None:
        self._writer = writer

    def __enter__(self) -> None:
        pass

    def __exit__(self, _: object, error: BaseException | None, __: object) -> None:
        if isinstance(error, OSError | asyncio.IncompleteReadError | TimeoutError):
            transport: Any = self._writer.transport
            transport.abort()
            raise BrokenError(
                f"{type(error).__name__} on {transport.connection}",
                is_excused=transport.connection.is_disturbed,
            ) from error
