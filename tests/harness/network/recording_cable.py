"""A TCP proxy that records its connections and checks them strictly against the HTTP standard."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from typing import NamedTuple
from urllib.parse import urlsplit

import h11

PIECE = 64 * 1024
LARGEST_HEAD = 64 * 1024
# The number of bytes that are shown in a fault.
SHOWN = 160


@dataclass(slots=True)
class Carried:
    """The data of one connection since both sides were last idle."""

    asked: bytearray = field(default_factory=bytearray)
    received: bytearray = field(default_factory=bytearray)
    # The number of bytes of `asked` that were checked.
    seen: int = 0

    def faults(self) -> list[str]:
        """Return malformed requests that were not rejected, and unsolicited responses."""
        self.seen = len(self.asked)
        asked = _requests(bytes(self.asked))
        received = _answers(bytes(self.received), asked.methods)
        if received is None:
            return [f"no answer by the standard: {bytes(self.received[-SHOWN:])!r}"]
        if (
            asked.is_malformed
            and len(received.statuses) > len(asked.methods)
            and received.statuses[-1] < 400
        ):
            return [f"answered with {received.statuses[-1]}: {bytes(self.asked[-SHOWN:])!r}"]
        if len(received.statuses) > len(asked.methods) + asked.is_malformed:
            number = len(received.statuses)
            return [f"{number} answers to {asked.methods}: {bytes(self.asked[-SHOWN:])!r}"]
        if asked.is_whole and received.is_whole and len(received.statuses) == len(asked.methods):
            self.asked.clear()
            self.received.clear()
            self.seen = 0
        return []


class Asked(NamedTuple):
    """The methods of well-formed requests, and the state of the data after them."""

    methods: list[str]
    # True if no data follows.
    is_whole: bool = False
    is_malformed: bool = False


class CarriedAnswers(NamedTuple):
    """The statuses of responses, the last of which may be incomplete."""

    statuses: list[int]
    is_whole: bool = False


def _requests(raw: bytes) -> Asked:
    methods: list[str] = []
    while raw:
        reading = h11.Connection(h11.SERVER, max_incomplete_event_size=LARGEST_HEAD)
        reading.receive_data(raw)
        try:
            while not isinstance(event := reading.next_event(), h11.EndOfMessage):
                if event is h11.NEED_DATA:
                    return Asked(methods)
                if isinstance(event, h11.Request):
                    names = [name for name, _ in event.headers]
                    if b"content-length" in names and b"transfer-encoding" in names:
                        # h11 accepts this.
                        return Asked(methods, is_malformed=True)
                    methods.append(event.method.decode())
        except h11.RemoteProtocolError:
            return Asked(methods, is_malformed=True)
        raw, _ = reading.trailing_data
    return Asked(methods, is_whole=True)


def _answers(raw: bytes, asked: list[str]) -> CarriedAnswers | None:
    """Parse responses; return None if the data is malformed."""
    statuses: list[int] = []
    while raw:
        method = asked[len(statuses)] if len(statuses) < len(asked) else "GET"
        reading = h11.Connection(h11.CLIENT, max_incomplete_event_size=LARGEST_HEAD)
        reading.send(h11.Request(method=method, target="/", headers=[("Host", "x")]))
        reading.send(h11.EndOfMessage())
        reading.receive_data(raw)
        try:
            while not isinstance(event := reading.next_event(), h11.EndOfMessage):
                if isinstance(event, h11.Response):
                    statuses.append(event.status_code)
                if event is h11.NEED_DATA or event is h11.PAUSED:
                    return CarriedAnswers(statuses)
        except h11.RemoteProtocolError:
            # h11 does not expect a 101 here; another protocol follows it.
            return CarriedAnswers([*statuses, 101]) if raw.startswith(b"HTTP/1.1 101 ") else None
        raw, _ = reading.trailing_data
    return CarriedAnswers(statuses, is_whole=True)


class Tap:
    """Carries TCP connections to a target and records them."""

    def __init__(self, target: str) -> None:
        parts = urlsplit(target)
        self._host, self._port = parts.hostname, parts.port
        self.carried: list[Carried] = []
        self.url = ""

    def new_faults(self) -> list[str]:
        """Return the faults of the connections that were active since the last call."""
        found = []
        for one in self.carried:
            if one.seen != len(one.asked):
                found += one.faults()
        return found

    async def carry(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Carry one connection."""
        carried = Carried()
        self.carried.append(carried)
        other_reader, other_writer = await asyncio.open_connection(self._host, self._port)
        try:
            await asyncio.gather(
                self._pump(reader, other_writer, carried.asked),
                self._pump(other_reader, writer, carried.received),
            )
        finally:
            writer.close()
            other_writer.close()

    async def _pump(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, into: bytearray
    ) -> None:
        with suppress(ConnectionError):
            while piece := await reader.read(PIECE):
                into += piece
                writer.write(piece)
                await writer.drain()
        writer.close()


@asynccontextmanager
async def tap(target: str) -> AsyncIterator[Tap]:
    """Run a tap in front of a URL; its own URL is `url`."""
    tapping = Tap(target)
    server = await asyncio.start_server(tapping.carry, "127.0.0.1", 0)
    tapping.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    try:
        yield tapping
    finally:
        server.close()
