"""Writing one answer to one client: when the head goes out, and what may still be said after it.

The head is held back until there is something true to say with it. Then it is either the engine's own, with the first
bytes of its body, or, for a stream that has to wait, `200` with a heartbeat.
"""

import asyncio
from collections.abc import Callable
from typing import Any

from proxy.access.body_budget import Budget
from proxy.api.errors import ApiError
from proxy.api.openai.dialects import OPENAI, Dialect
from proxy.api.sending import paid, send_body

STREAM_HEADERS = [
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-cache, no-transform"),
    (b"x-accel-buffering", b"no"),
]
API_VERSION = b"2020-10-01"
WITHOUT_BODY = (204, 304)  # a client reads what follows such a head as the next answer
RESET = 205  # has a body, which is empty


class Reply:
    """The answer to one request; `headers` go out with it, whatever it becomes."""

    def __init__(
        self,
        send: Any,
        headers: list[tuple[bytes, bytes]],
        answers: Budget,
        abort: Callable[[], None],
        *,
        only_head: bool = False,
    ) -> None:
        self._send, self._abort = send, abort
        self._headers = headers
        self._answers = answers
        self._clock = asyncio.get_running_loop().time
        self._begun = self._clock()
        self._only_head = only_head
        self._dialect = OPENAI
        self.has_begun = False  # a head has gone out
        self.is_stream = False  # and it was a stream's

    def speak(self, dialect: Dialect) -> None:
        """Say errors and heartbeats in this dialect from now on."""
        self._dialect = dialect

    def add_header(self, name: bytes, value: bytes) -> None:
        """One more header, while the head has not gone out."""
        self._headers.append((name, value))

    async def whole(
        self,
        status: int,
        content_type: bytes,
        body: bytes,
        headers: list[tuple[bytes, bytes]] | None = None,
    ) -> None:
        """The whole answer; `BudgetError`, and nothing is sent, if it is large and there is no room for it now."""
        if status in WITHOUT_BODY or status == RESET:
            body = b""
        own = [(b"content-type", content_type), (b"content-length", str(len(body)).encode())]
        if status in WITHOUT_BODY:
            own = []
        if self._only_head:
            body = b""
        with paid(body, self._answers):
            await self._start(status, own + (headers or []))
            await send_body(self._send, body, self._abort)

    async def error(self, error: ApiError) -> None:
        """An error of this proxy: with its own status, or as the last event of a stream that has begun."""
        body = self._dialect.error(error)
        if self.is_stream:
            await self.failed(body)
        else:
            await self.whole(error.row.status, b"application/json", body, error.headers())

    async def events(self, data: bytes) -> None:
        """Bytes of a stream, whole events; the head goes out with the first of them."""
        if not self.is_stream:
            self.is_stream = True
            await self._start(200, STREAM_HEADERS)
        await self._send({"type": "http.response.body", "body": data, "more_body": True})

    async def heartbeat(self, text: str) -> None:
        """Show a client that waits, and what stands between, that this is alive."""
        await self.events(self._dialect.heartbeat(text))

    async def failed(self, body: bytes) -> None:
        """End a stream that has begun with an error: the body of an error answer, as an event."""
        await self.events(self._dialect.last_events(body))
        await self.end()

    async def end(self) -> None:
        """The stream is complete."""
        if not self.is_stream:
            await self.events(b"")
        await self._send({"type": "http.response.body", "body": b""})

    async def _start(self, status: int, headers: list[tuple[bytes, bytes]]) -> None:
        self.has_begun = True
        took = round((self._clock() - self._begun) * 1000)
        timing = [(b"openai-processing-ms", str(took).encode()), (b"openai-version", API_VERSION)]
        await self._send(
            {
                "type": "http.response.start",
                "status": status,
                "headers": headers + self._headers + timing,
            }
        )
