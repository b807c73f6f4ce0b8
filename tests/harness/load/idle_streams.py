"""Clients whose streams wait in the queue and receive only heartbeats."""

import asyncio
import json
import resource
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import cast
from urllib.parse import urlsplit

import pytest

BODY = json.dumps({"messages": [{"role": "user", "content": "hello"}], "stream": True}).encode()
ASK = (
    b"POST /v2/default/openai/v1/chat/completions HTTP/1.1\r\nHost: localhost\r\n"
    b"Content-Type: application/json\r\n"
    b"Content-Length: %d\r\n\r\n%b" % (len(BODY), BODY)
)
DIALS = 256
# The number of bytes of a stream that are kept.
TAIL = 1024


class Idle(asyncio.Protocol):
    """A client with a waiting stream."""

    def __init__(self) -> None:
        self._transport: asyncio.Transport | None = None
        self._loop = asyncio.get_running_loop()
        self._heard_at = 0.0
        self.tail = b""
        self.heartbeats = 0
        self.longest_silence = 0.0
        self.is_over = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Send the request."""
        self._transport = cast("asyncio.Transport", transport)
        self._transport.write(ASK)

    def data_received(self, data: bytes) -> None:
        now = self._loop.time()
        if self._heard_at:
            self.longest_silence = max(self.longest_silence, now - self._heard_at)
        self._heard_at = now
        self.heartbeats += data.count(b"\n: queued")
        self.tail = (self.tail + data)[-TAIL:]

    def connection_lost(self, _: Exception | None) -> None:
        """Record the end of the connection."""
        self.is_over = True

    @property
    def is_whole(self) -> bool:
        """Return True if the stream was ended correctly."""
        return b"data: [DONE]\n\n" in self.tail and self.tail.endswith(b"\r\n0\r\n\r\n")

    def leave(self) -> None:
        """Close the connection."""
        if self._transport is not None:
            self._transport.abort()


@asynccontextmanager
async def idling(url: str, number: int) -> AsyncIterator[list[Idle]]:
    """Connect `number` clients; return when all are connected."""
    parts, loop, gate = urlsplit(url), asyncio.get_running_loop(), asyncio.Semaphore(DIALS)
    found = [Idle() for _ in range(number)]

    async def dial(one: Idle) -> None:
        async with gate:
            await loop.create_connection(lambda: one, parts.hostname, parts.port)

    try:
        await asyncio.gather(*map(dial, found))
        yield found
    finally:
        for one in found:
            one.leave()


def allow_descriptors(number: int) -> None:
    """Allow this process and its children to open `number` files, or skip the test."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < number:
        pytest.skip(f"needs {number} open files: ulimit -n {number}")
    if soft != resource.RLIM_INFINITY and soft < number:
        resource.setrlimit(resource.RLIMIT_NOFILE, (number, hard))
