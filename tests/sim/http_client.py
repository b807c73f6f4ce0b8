"""A raw HTTP client on simulated connections.

A client opens a connection for each request (`request`), a `Session` keeps its connections open.
"""

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from typing import Any

from sim.machines import ADDRESS, KEYS, TOKEN

# A client without an answer gives up after this time. No timeout of the proxy is longer.
TIMEOUT_SECONDS = 150.0
# aiohttp does not use a connection again that was idle for longer.
KEEP_ALIVE_SECONDS = 15.0


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
class Connection:
    """An open connection to the proxy."""

    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter

    @property
    def is_open(self) -> bool:
        """False if the end of the connection has arrived."""
        reader = self.reader
        return not (reader.at_eof() or reader.exception() or self.writer.is_closing())

    @property
    def link(self) -> Any:
        """The connection of the simulated network."""
        transport: Any = self.writer.transport
        return transport.connection

    def send(self, method: str, path: str, fields: str, body: bytes = b"") -> None:
        """Send a request. `fields`: header fields, each with its line end."""
        head = (
            f"{method} {path} HTTP/1.1\r\nHost: {ADDRESS[0]}:{ADDRESS[1]}\r\n{fields}"
            f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
        )
        with _breaking(self.writer):
            self.writer.write(head.encode() + body)

    async def response(self) -> Response:
        """Return the response once its head has arrived. Raises `BrokenError`."""
        with _breaking(self.writer):
            async with asyncio.timeout(TIMEOUT_SECONDS):
                status = int((await _line(self.reader)).split()[1])
                headers = {}
                while line := await _line(self.reader):
                    name, _, value = line.decode().partition(":")
                    headers[name.lower()] = value.strip()
        return Response(status, headers, self.reader, self.writer)

    def abort(self) -> None:
        """Leave at once."""
        self.writer.transport.abort()


async def connect() -> Connection:
    """Open a connection. Raises `BrokenError`."""
    try:
        return Connection(*await asyncio.open_connection(*ADDRESS))
    except OSError as error:
        raise BrokenError(f"cannot connect: {error}", is_excused=True) from error


@dataclass(slots=True)
class Call:
    """A request on an open connection, which is sent later."""

    connection: Connection
    method: str
    path: str
    fields: str
    body: bytes

    def send(self) -> None:
        """Send the whole request."""
        self.connection.send(self.method, self.path, self.fields, self.body)

    async def response(self) -> Response:
        """Return the response once its head has arrived. Raises `BrokenError`."""
        return await self.connection.response()

    def abort(self) -> None:
        """Leave at once."""
        self.connection.abort()


async def prepare(method: str, path: str, owner: str, body: Any = None) -> Call:
    """Open a connection for a request of a client. Raises `BrokenError`."""
    fields = f"Authorization: Bearer {KEYS[owner]}\r\nConnection: close\r\n"
    data = b"" if body is None else json.dumps(body).encode()
    return Call(await connect(), method, path, fields, data)


async def send(method: str, path: str, owner: str, body: Any = None) -> Connection:
    """Send a request over a connection of its own. Raises `BrokenError`."""
    call = await prepare(method, path, owner, body)
    call.send()
    return call.connection


async def request(method: str, path: str, owner: str, body: Any = None) -> Response:
    """Send a request and return its response. Raises `BrokenError`."""
    return await (await send(method, path, owner, body)).response()


class Session:
    """The connections of a worker, which stay open between its requests, as those of aiohttp do."""

    def __init__(self, on_post: Callable[[Connection], None] | None = None) -> None:
        # Called with the connection of a POST request that has been sent.
        self._on_post = on_post
        # Idle connections, and since when.
        self._idle: list[tuple[Connection, float]] = []

    async def request(self, method: str, path: str, body: Any = None) -> tuple[int, bytes]:
        """Return the status and the body of the response. Raises `BrokenError`."""
        try:
            return await self._request(method, path, body)
        except BrokenError:
            # aiohttp repeats an idempotent request once.
            if method != "GET":
                raise
        return await self._request(method, path, body)

    async def _request(self, method: str, path: str, body: Any) -> tuple[int, bytes]:
        connection = self._idle_connection() or await connect()
        data = b"" if body is None else json.dumps(body).encode()
        is_answered = False
        try:
            connection.send(method, path, f"Authorization: Bearer {TOKEN}\r\n", data)
            if self._on_post is not None and method == "POST":
                self._on_post(connection)
            response = await connection.response()
            content = b"".join([piece async for piece in response.pieces()])
            is_answered = True
        finally:
            # Also if the task is cancelled.
            if not is_answered:
                connection.abort()
        if response.headers.get("connection") == "close":
            response.close()
        else:
            self._idle.append((connection, asyncio.get_running_loop().time()))
        return response.status, content

    def _idle_connection(self) -> Connection | None:
        now = asyncio.get_running_loop().time()
        while self._idle:
            connection, since = self._idle.pop()
            if connection.is_open and now - since <= KEEP_ALIVE_SECONDS:
                return connection
            connection.writer.close()
        return None


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
