"""A cable that remembers what it carried, and reads it again by the letter of the standard."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from urllib.parse import urlsplit

import h11

PIECE = 64 * 1024
LARGEST_HEAD = 64 * 1024


@dataclass(slots=True)
class Carried:
    """What one connection has carried."""

    asked: bytearray = field(default_factory=bytearray)
    told: bytearray = field(default_factory=bytearray)
    seen: int = 0  # how much of it has been looked at

    def faults(self) -> list[str]:
        """What arrived and was neither well-formed nor refused; and answers that nobody had asked for."""
        asked, is_malformed = _requests(bytes(self.asked))
        statuses = _statuses(bytes(self.told), asked)
        if statuses is None:
            return [f"no answer by the standard: {bytes(self.told[-160:])!r}"]
        if is_malformed and len(statuses) > len(asked) and statuses[-1] < 400:
            return [f"answered with {statuses[-1]}: {bytes(self.asked[-160:])!r}"]
        if len(statuses) > len(asked) + is_malformed:
            return [f"{len(statuses)} answers to {len(asked)} requests: {bytes(self.asked[-160:])!r}"]
        return []


def _requests(raw: bytes) -> tuple[list[str], bool]:
    """The methods of the requests in these bytes, and whether malformed ones follow them."""
    found: list[str] = []
    while raw:
        reading = h11.Connection(h11.SERVER, max_incomplete_event_size=LARGEST_HEAD)
        reading.receive_data(raw)
        try:
            while not isinstance(event := reading.next_event(), h11.EndOfMessage):
                if event is h11.NEED_DATA:
                    return found, False
                if isinstance(event, h11.Request):
                    names = [name for name, _ in event.headers]
                    if b"content-length" in names and b"transfer-encoding" in names:
                        return found, True  # h11 lets this pass
                    found.append(event.method.decode())
        except h11.RemoteProtocolError:
            return found, True
        raw, _ = reading.trailing_data
    return found, False


def _statuses(raw: bytes, asked: list[str]) -> list[int] | None:
    """The statuses of the answers in these bytes; None when they are none. The last one may be cut."""
    found: list[int] = []
    while raw:
        method = asked[len(found)] if len(found) < len(asked) else "GET"
        reading = h11.Connection(h11.CLIENT, max_incomplete_event_size=LARGEST_HEAD)
        reading.send(h11.Request(method=method, target="/", headers=[("Host", "x")]))
        reading.send(h11.EndOfMessage())
        reading.receive_data(raw)
        try:
            while not isinstance(event := reading.next_event(), h11.EndOfMessage):
                if isinstance(event, h11.Response):
                    found.append(event.status_code)
                if event is h11.NEED_DATA or event is h11.PAUSED:
                    return found
        except h11.RemoteProtocolError:
            return [*found, 101] if raw.startswith(b"HTTP/1.1 101 ") else None  # it is another protocol from here on
        raw, _ = reading.trailing_data
    return found


class Tap:
    """Carries TCP connections to a target."""

    def __init__(self, target: str) -> None:
        parts = urlsplit(target)
        self._host, self._port = parts.hostname, parts.port
        self.carried: list[Carried] = []
        self.url = ""

    def new_faults(self) -> list[str]:
        """Those of the connections that have carried something since the last look."""
        found = []
        for one in self.carried:
            if one.seen < len(one.asked):
                one.seen = len(one.asked)
                found += one.faults()
        return found

    async def carry(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One connection."""
        carried = Carried()
        self.carried.append(carried)
        other_reader, other_writer = await asyncio.open_connection(self._host, self._port)
        try:
            await asyncio.gather(
                self._pump(reader, other_writer, carried.asked), self._pump(other_reader, writer, carried.told)
            )
        finally:
            writer.close()
            other_writer.close()

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, into: bytearray) -> None:
        with suppress(ConnectionError):
            while piece := await reader.read(PIECE):
                into += piece
                writer.write(piece)
                await writer.drain()
        writer.close()


@asynccontextmanager
async def tap(target: str) -> AsyncIterator[Tap]:
    """A tap before a URL; its own URL is `url`."""
    tapping = Tap(target)
    server = await asyncio.start_server(tapping.carry, "127.0.0.1", 0)
    tapping.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    try:
        yield tapping
    finally:
        server.close()
