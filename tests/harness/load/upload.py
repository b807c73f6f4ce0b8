"""Clients with large bodies that keep only one piece in memory."""

import asyncio
from collections.abc import Iterator
from contextlib import suppress
from itertools import repeat
from typing import NamedTuple

from harness.network.raw_connection import Answer, Strict, strict

PIECE = b"x" * (64 * 1024)
TIMEOUT_SECONDS = 60.0
MB = 1024 * 1024


class Body(NamedTuple):
    """A request body in pieces."""

    begin: bytes
    piece: bytes
    times: int
    end: bytes

    @property
    def size(self) -> int:
        """The size in bytes."""
        return len(self.begin) + self.times * len(self.piece) + len(self.end)

    def pieces(self) -> Iterator[bytes]:
        """Yield the pieces in order."""
        yield self.begin
        yield from repeat(self.piece, self.times)
        yield self.end


def text(size: int, begin: str = "") -> Body:
    """Return a prompt for the engine of about `size` bytes that starts with `begin`."""
    return Body(b'{"prompt":"%b' % begin.encode(), PIECE, size // len(PIECE) - 1, b'"}')


def head(path: str, *fields: str) -> bytes:
    """Return the head of a request with a JSON body."""
    lines = (f"POST {path} HTTP/1.1", "Host: localhost", "Content-Type: application/json", *fields)
    return "\r\n".join(lines).encode() + b"\r\n\r\n"


async def upload(
    url: str, path: str, body: Body, *, chunked: bool = False, fields: tuple[str, ...] = ()
) -> Answer:
    """Send the request until a response arrives, which is read in any case."""
    framing = "Transfer-Encoding: chunked" if chunked else f"Content-Length: {body.size}"
    async with strict(url, TIMEOUT_SECONDS) as line:
        await line.say(head(path, framing, *fields))
        sending = asyncio.create_task(_send(line, body, chunked=chunked))
        try:
            answer = await line.answer()
        finally:
            sending.cancel()
            with suppress(asyncio.CancelledError):
                await sending
    assert answer is not None, f"no answer to {path}"
    return answer


async def _send(line: Strict, body: Body, *, chunked: bool) -> None:
    for piece in body.pieces():
        await line.say(b"%x\r\n%b\r\n" % (len(piece), piece) if chunked else piece)
    if chunked:
        await line.say(b"0\r\n\r\n")
