"""A connection that sends arbitrary bytes, and parses responses strictly by the standard."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from itertools import count
from urllib.parse import urlsplit

import h11

PIECE = 64 * 1024
# The maximum size of a response head.
ANSWER_HEAD = 64 * 1024
_numbers = count(1)


class HeldError(Exception):
    """Neither a response nor the end of the connection arrived."""


@dataclass(frozen=True, slots=True)
class Answer:
    """A complete response."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def is_last(self) -> bool:
        """Return True if the response announces the end of the connection."""
        return self.headers.get("connection", "").lower() == "close"


class Strict:
    """One connection."""

    def __init__(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, seconds: float
    ) -> None:
        self._reader, self._writer, self._timeout = reader, writer, seconds
        self._rest = b""

    async def say(self, raw: bytes, *, ends: bool = False) -> None:
        """Send these bytes, or as many of them as the server accepts."""
        with suppress(ConnectionError, RuntimeError):
            self._writer.write(raw)
            await self._writer.drain()
            if ends:
                self._writer.write_eof()

    async def answer(self, method: str = "GET") -> Answer | None:
        """Return the next response, or None if the connection has ended.

        Raises `h11.RemoteProtocolError` for a malformed response.
        """
        reading = h11.Connection(h11.CLIENT, max_incomplete_event_size=ANSWER_HEAD)
        reading.send(h11.Request(method=method, target="/", headers=[("Host", "x")]))
        reading.send(h11.EndOfMessage())
        if self._rest:
            reading.receive_data(self._rest)
        has_begun = bool(self._rest)
        found, body = None, bytearray()
        while True:
            event = reading.next_event()
            if event is h11.NEED_DATA:
                data = await self._read()
                if not data and not has_begun:
                    return None
                has_begun = True
                reading.receive_data(data)
            elif isinstance(event, h11.Response):
                found = event
            elif isinstance(event, h11.Data):
                body += event.data
            elif isinstance(event, h11.EndOfMessage):
                assert found is not None
                self._rest = reading.trailing_data[0]
                headers = {name.decode(): value.decode("latin-1") for name, value in found.headers}
                return Answer(found.status_code, headers, bytes(body))

    async def _read(self) -> bytes:
        try:
            return await asyncio.wait_for(self._reader.read(PIECE), self._timeout)
        except TimeoutError:
            raise HeldError from None
        except ConnectionError:
            return b""


@asynccontextmanager
async def strict(url: str, seconds: float = 5.0) -> AsyncIterator[Strict]:
    """Connect to this URL; `seconds` is the timeout of a response."""
    parts = urlsplit(url)
    reader, writer = await asyncio.open_connection(parts.hostname, parts.port)
    try:
        yield Strict(reader, writer, seconds)
    finally:
        writer.transport.abort()


@dataclass(frozen=True, slots=True)
class Marker:
    """A request that exactly one response matches."""

    name: str
    raw: bytes

    def fits(self, answer: Answer | None) -> bool:
        """Return True if the response belongs to this request."""
        return (
            answer is not None
            and answer.status == 404
            and answer.headers.get("x-request-id") == self.name
            and self.name.encode() in answer.body
        )


def marker() -> Marker:
    """Return a unique request."""
    name = f"marker-{next(_numbers)}"
    raw = f"GET /v1/models/{name} HTTP/1.1\r\nHost: localhost\r\nX-Request-ID: {name}\r\n\r\n"
    return Marker(name, raw.encode())
