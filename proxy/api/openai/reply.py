"""Writes one response to one client.

The response start (status and headers) is delayed until its status is known: it is sent with the
first bytes of the engine's body, or, for a stream whose job is still queued, as `200` with the
first heartbeat.
"""

import asyncio
from collections.abc import Callable
from typing import Any

from proxy.access.body_budget import Budget
from proxy.api.errors import ApiError
from proxy.api.http import paid, send_body
from proxy.api.openai.dialects import OPENAI, Dialect

STREAM_HEADERS = [
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-cache, no-transform"),
    (b"x-accel-buffering", b"no"),
]
API_VERSION = b"2020-10-01"
# A client parses bytes after such a response start as the next response.
STATUSES_WITHOUT_BODY = (204, 304)
# Has a body, which must be empty.
RESET_CONTENT = 205


class Reply:
    """The response to one request.

    `headers` are sent with every kind of response. `only_head` suppresses the body, for HEAD
    requests. `has_begun` is True once the response start was sent, `is_stream` if it was that of an
    event stream.
    """

    def __init__(
        self,
        send: Any,
        headers: list[tuple[bytes, bytes]],
        answers: Budget,
        abort: Callable[[], None],
        *,
        only_head: bool = False,
    ) -> None:
        self._send = send
        self._abort = abort
        self._headers = headers
        self._answers = answers
        self._clock = asyncio.get_running_loop().time
        self._begun = self._clock()
        self._only_head = only_head
        self._dialect = OPENAI
        self.has_begun = False
        self.is_stream = False

    def set_dialect(self, dialect: Dialect) -> None:
        """Set the dialect of errors and heartbeats."""
        self._dialect = dialect

    def add_header(self, name: bytes, value: bytes) -> None:
        """Add a header; must be called before the response start is sent."""
        self._headers.append((name, value))

    async def whole(
        self,
        status: int,
        content_type: bytes,
        body: bytes,
        headers: list[tuple[bytes, bytes]] | None = None,
    ) -> None:
        """Send a complete response.

        Raises `BudgetError`, before anything is sent, if the budget for responses is exhausted.
        """
        if status in STATUSES_WITHOUT_BODY or status == RESET_CONTENT:
            body = b""
        own = [(b"content-type", content_type), (b"content-length", str(len(body)).encode())]
        if status in STATUSES_WITHOUT_BODY:
            own = []
        if self._only_head:
            body = b""
        with paid(body, self._answers):
            await self._start(status, own + (headers or []))
            await send_body(self._send, body, self._abort)

    async def error(self, error: ApiError) -> None:
        """Send an error of the proxy: with its status, or as the final event of a begun stream."""
        body = self._dialect.error(error)
        if self.is_stream:
            await self.failed(body)
        else:
            await self.whole(error.row.status, b"application/json", body, error.headers())

    async def events(self, data: bytes) -> None:
        """Send bytes of an event stream; the first call also sends the response start."""
        if not self.is_stream:
            self.is_stream = True
            await self._start(200, STREAM_HEADERS)
        await self._send({"type": "http.response.body", "body": data, "more_body": True})

    async def heartbeat(self, text: str) -> None:
        """Send a heartbeat, which prevents timeouts of the client and of intermediaries."""
        await self.events(self._dialect.heartbeat(text))

    async def failed(self, body: bytes) -> None:
        """End a stream with the body of an error response as its final event."""
        await self.events(self._dialect.last_events(body))
        await self.end()

    async def end(self) -> None:
        """Complete the stream; sends the response start if no event was sent."""
        if not self.is_stream:
            await self.events(b"")
        await self._send({"type": "http.response.body", "body": b""})

    async def _start(self, status: int, headers: list[tuple[bytes, bytes]]) -> None:
        self.has_begun = True
        elapsed_ms = round((self._clock() - self._begun) * 1000)
        own = [
            (b"openai-processing-ms", str(elapsed_ms).encode()),
            (b"openai-version", API_VERSION),
        ]
        await self._send(
            {
                "type": "http.response.start",
                "status": status,
                "headers": headers + self._headers + own,
            }
        )
