"""A server in the proxy's place that violates the protocol, or is another kind of server."""

import asyncio
import socket
import struct
import threading
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager, suppress
from urllib.parse import urlsplit

from websockets.utils import accept_key

Behaviour = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


def reset(writer: asyncio.StreamWriter) -> None:
    """Close with RST instead of FIN."""
    wire = writer.get_extra_info("socket")
    wire.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()


async def closes(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.close()


async def resets(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    reset(writer)


async def resets_in_the_request(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await reader.readexactly(20)
    reset(writer)


async def never_answers(reader: asyncio.StreamReader, _: asyncio.StreamWriter) -> None:
    await reader.read()


def answers(data: bytes, *, then: str = "close", upgrade: bool = False) -> Behaviour:
    """Read the request, send `data` and close.

    With `upgrade`, `data` follows a correct response to the handshake.
    """

    async def behaviour(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        request = (await reader.readuntil(b"\r\n\r\n")).decode()
        keys = [
            line for line in request.split("\r\n") if line.lower().startswith("sec-websocket-key:")
        ]
        if upgrade and keys:
            lines = [
                "HTTP/1.1 101 Switching Protocols",
                "Upgrade: websocket",
                "Connection: Upgrade",
            ]
            accepted = accept_key(keys[0].partition(":")[2].strip())
            writer.write(
                ("\r\n".join([*lines, f"Sec-WebSocket-Accept: {accepted}"]) + "\r\n\r\n").encode()
            )
        writer.write(data)
        with suppress(ConnectionError):
            await writer.drain()
        if then == "reset":
            reset(writer)
        elif then == "close":
            writer.close()
        else:
            await reader.read()

    return behaviour


def status(line: str, body: bytes = b"", *fields: str) -> Behaviour:
    head = "\r\n".join([f"HTTP/1.1 {line}", f"Content-Length: {len(body)}", *fields])
    return answers(f"{head}\r\n\r\n".encode() + body)


def upgraded(frames: bytes, then: str = "close") -> Behaviour:
    return answers(frames, then=then, upgrade=True)


SWITCHING = b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
HANDSHAKES: dict[str, Behaviour] = {
    "closes at once": closes,
    "resets at once": resets,
    "resets in the middle of the request": resets_in_the_request,
    "closes after the request": answers(b""),
    "resets after the request": answers(b"", then="reset"),
    "never answers": never_answers,
    "sends half a status line and closes": answers(b"HTTP/1.1 10"),
    "sends half a head and resets": answers(SWITCHING, then="reset"),
    "sends half a head and is silent": answers(SWITCHING, then="wait"),
    "sends half a body and closes": answers(b"HTTP/1.1 503 Busy\r\nContent-Length: 99\r\n\r\nhalf"),
    "sends an endless body": answers(b"HTTP/1.1 503 Busy\r\n\r\n" + b"x" * 2_000_000, then="wait"),
    "sends an endless line": answers(b"x" * 100_000, then="wait"),
    "sends endless fields": answers(b"HTTP/1.1 101 OK\r\n" + b"a: b\r\n" * 10_000, then="wait"),
    "sends an SSH banner": answers(b"SSH-2.0-OpenSSH_9.6\r\n"),
    "sends a TLS alert": answers(b"\x15\x03\x01\x00\x02\x02\x46"),
    "sends HTTP/2 frames": answers(b"\x00\x00\x12\x04\x00\x00\x00\x00\x00"),
    "sends zeros": answers(bytes(4096)),
    "200 with a page": status("200 OK", b"<html>hello</html>", "Content-Type: text/html"),
    "204": status("204 No Content"),
    "400": status("400 Bad Request"),
    "408": status("408 Request Timeout"),
    "429": status("429 Too Many Requests", b"slow down", "Retry-After: 3600"),
    "500": status("500 Internal Server Error"),
    "502": status("502 Bad Gateway", b"<html>nginx</html>"),
    "503": status("503 Service Unavailable"),
    "504": status("504 Gateway Timeout"),
    "530 of a tunnel": status("530 Origin Unreachable"),
    "999": status("999 No Such Status"),
    "302 to a page": status("302 Found", b"", "Location: https://status.invalid/"),
    "301 to itself": status("301 Moved Permanently", b"", "Location: /v2/default/worker"),
    "307 to no address": status("307 Temporary Redirect", b"", "Location: ws://[::1"),
    "308 to two addresses": status("308 Permanent Redirect", b"", "Location: /a", "Location: /b"),
    "101 with a wrong key": answers(SWITCHING + b"Sec-WebSocket-Accept: wrong\r\n\r\n"),
    "101 without a key": answers(SWITCHING + b"\r\n"),
    "101 to another protocol": answers(
        b"HTTP/1.1 101 OK\r\nUpgrade: h2c\r\nConnection: Upgrade\r\n\r\n"
    ),
    "401": status("401 Unauthorized", b"login first"),
    "403": status("403 Forbidden", b"blocked by a firewall"),
    "404": status("404 Not Found", b"no such tunnel"),
}
"""Handshakes that fail."""

CONNECTIONS: dict[str, Behaviour] = {
    "closes after the handshake": upgraded(b""),
    "resets after the handshake": upgraded(b"", then="reset"),
    "sends a frame that is none": upgraded(b"\xff\xff\xff\xff"),
    "sends half a frame": upgraded(b"\x82\x7e\x01"),
    "sends a frame of 2 GB": upgraded(b"\x82\x7f\x00\x00\x00\x00\x80\x00\x00\x00"),
    "sends a text that is not UTF-8": upgraded(b"\x81\x02\xff\xff"),
    "sends a message of another protocol": upgraded(b"\x81\x05hello"),
    "sends masked frames": upgraded(b"\x82\x81\x00\x00\x00\x00x"),
    "closes with a code": upgraded(b"\x88\x02" + struct.pack("!H", 1012)),
    "closes with no code": upgraded(b"\x88\x00"),
    "closes with a code that is none": upgraded(b"\x88\x02" + struct.pack("!H", 42)),
    "refuses with a code": upgraded(b"\x88\x02" + struct.pack("!H", 4409)),
}
"""Connections that are lost after the handshake."""

BEHAVIOURS = HANDSHAKES | CONNECTIONS


class Misbehaving:
    """Carries connections to a target, or misbehaves as set by the test.

    It runs in a thread so that its timing does not depend on the event loop of the test.
    """

    def __init__(self, target: str) -> None:
        self._port = urlsplit(target).port
        self._writers: set[asyncio.StreamWriter] = set()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever)
        self._server: asyncio.Server | None = None
        self.behaviour: Behaviour | None = None
        # The behaviour of the first connection.
        self.first: Behaviour | None = None
        self.tries = 0

    def start(self) -> str:
        """Listen; return host and port."""
        self._thread.start()
        listening = asyncio.run_coroutine_threadsafe(self._listen(), self._loop)
        return f"127.0.0.1:{listening.result()}"

    def break_with(self, behaviour: Behaviour) -> None:
        """Set the behaviour of new connections, and break the open ones."""
        self.behaviour = behaviour
        self._loop.call_soon_threadsafe(self._abort)

    def close(self) -> None:
        asyncio.run_coroutine_threadsafe(self._end(), self._loop).result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    async def _listen(self) -> int:
        self._server = await asyncio.start_server(self._take, "127.0.0.1", 0)
        return int(self._server.sockets[0].getsockname()[1])

    async def _end(self) -> None:
        assert self._server is not None
        self._server.close()
        others = asyncio.all_tasks() - {asyncio.current_task()}
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)

    def _abort(self) -> None:
        for writer in self._writers:
            writer.transport.abort()

    async def _take(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            if self.behaviour is None:
                await self._carry(reader, writer)
                return
            behaviour, self.first = self.first or self.behaviour, None
            self.tries += 1
            with suppress(ConnectionError, asyncio.IncompleteReadError):
                await behaviour(reader, writer)
        finally:
            writer.close()

    async def _carry(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        other_reader, other_writer = await asyncio.open_connection("127.0.0.1", self._port)
        self._writers |= {writer, other_writer}
        await asyncio.gather(_pump(reader, other_writer), _pump(other_reader, writer))


async def _pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with suppress(ConnectionError):
        while piece := await reader.read(65536):
            writer.write(piece)
    writer.close()


@contextmanager
def misbehaving(target: str = "") -> Iterator[tuple[Misbehaving, str]]:
    """Run such a server; yield it and its host and port."""
    server = Misbehaving(target)
    try:
        yield server, server.start()
    finally:
        server.close()
