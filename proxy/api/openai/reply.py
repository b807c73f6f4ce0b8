"""The HTTP response to an OpenAI call.

Its start (status and headers) is delayed until the status is known: it is sent with the first bytes
of the engine's body, or, for a stream whose job is still queued, as `200` with the first heartbeat.
A call that asked for whitespace gets `200` at once.
"""

import asyncio
from collections.abc import Callable
from typing import Any

from proxy.access.limits import Share
from proxy.api.errors import ApiError
from proxy.api.http import paid, send_body
from proxy.api.openai.dialects import OPENAI, Dialect
from proxy.api.openai.stream_events import HeartbeatForm, StreamedCall, StreamEvents
from proxy.jobs.model import EVENT_STREAM, Head

STREAM_HEADERS = [
    (b"content-type", f"{EVENT_STREAM}; charset=utf-8".encode()),
    (b"cache-control", b"no-cache, no-transform"),
    (b"x-accel-buffering", b"no"),
]
API_VERSION = b"2020-10-01"
PADDED_HEADERS = [(b"content-type", b"application/json"), *STREAM_HEADERS[1:]]
# Statuses of a response that is an error of the server.
FIRST_SERVER_ERROR = 500
# A client parses bytes after such a response start as the next response.
STATUSES_WITHOUT_BODY = (204, 304)
# Has a body, which must be empty.
RESET_CONTENT = 205
# The beginning of the names of the proxy's own fields for rate limits.
OWN_RATE_LIMITS = b"x-ratelimit-"


class Reply:
    """The response to one request.

    `request_id` is sent with every kind of response. `only_head` suppresses the body, for HEAD
    requests. `has_begun` is True once the response start was sent, `is_stream` if it was that of an
    event stream, and `is_padded` if blanks precede a JSON body that has not begun.
    """

    def __init__(
        self,
        send: Any,
        request_id: bytes,
        share: Share,
        abort: Callable[[], None],
        *,
        only_head: bool = False,
    ) -> None:
        self._send = send
        self.request_id = request_id.decode()
        self._abort = abort
        self._headers = [(b"x-request-id", request_id)]
        self._share = share
        self._clock = asyncio.get_running_loop().time
        self._begun = self._clock()
        self._only_head = only_head
        self._dialect = OPENAI
        self._form = HeartbeatForm.OFF
        self._call: StreamedCall | None = None
        self._events: StreamEvents | None = None
        self.has_begun = False
        self.is_stream = False
        self.is_padded = False

    @property
    def can_fail(self) -> bool:
        """True if an error can still be sent."""
        return not self.has_begun or self.is_stream or self.is_padded

    def set_dialect(self, dialect: Dialect) -> None:
        """Set the dialect of errors and heartbeats."""
        self._dialect = dialect

    def add_header(self, name: bytes, value: bytes) -> None:
        """Add a header; must be called before the response start is sent."""
        self._headers.append((name, value))

    def forward(self, head: Head | None) -> None:
        """Add the header fields of the engine's response.

        The rate limits of an upstream take the place of the proxy's, so that no two numbers of
        different limits stand together.
        """
        if head is None or not head.fields:
            return
        if any(name.startswith(OWN_RATE_LIMITS) for name, _ in head.fields):
            self._headers = [
                field for field in self._headers if not field[0].startswith(OWN_RATE_LIMITS)
            ]
        self._headers += head.fields

    def continue_stream(self) -> None:
        """Note that the response is an event stream whose beginning was sent."""
        self.has_begun = True
        self.is_stream = True

    def expect_stream(self, form: HeartbeatForm, call: StreamedCall) -> None:
        """Note that the client has asked for a stream, and the form of its heartbeats."""
        self._form = form
        self._call = call
        if form in self._dialect.noted_forms:
            self._events = self._dialect.events(form, call)

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
        with paid(body, self._share):
            if not self.is_padded:
                await self._start(status, own + (headers or []))
            self.is_padded = False
            await send_body(self._send, body, self._abort)

    async def error(self, error: ApiError) -> None:
        """Send an error of the proxy: with its status, or as the last events of a stream."""
        body = self._dialect.error(error)
        row = error.row
        if self.is_stream or (row.is_final and self.sends_late(row.status)):
            await self.failed(body, is_final=row.is_final)
        else:
            await self.whole(row.status, b"application/json", body, error.headers())

    def sends_late(self, status: int) -> bool:
        """Return True if a final error with this status is sent as events instead (see
        `Dialect.has_late_errors`).
        """
        is_stream = self._call is not None and not self.has_begun
        return is_stream and self._dialect.has_late_errors and status >= FIRST_SERVER_ERROR

    async def events(self, data: bytes) -> None:
        """Send bytes of an event stream; the first call also sends the response start."""
        if not self.has_begun:
            self.is_stream = True
            await self._start(200, STREAM_HEADERS)
        await self._send({"type": "http.response.body", "body": data, "more_body": True})

    def note(self, data: bytes) -> None:
        """Note bytes of the engine that were sent, if events of the proxy depend on them."""
        if self._events is not None:
            self._events.note(data)

    async def begin_padding(self) -> None:
        """Send the response start of a JSON body before the status of the call is known."""
        self.is_padded = True
        await self._start(200, PADDED_HEADERS)
        await self.heartbeat("")

    async def heartbeat(self, text: str) -> None:
        """Send a heartbeat, which prevents timeouts of the client and of intermediaries."""
        await self.events(b" " if self.is_padded else self._own_events().heartbeat(text))

    async def failed(self, body: bytes, *, is_final: bool) -> None:
        """End a stream with the body of an error response as its last events.

        `is_final`: the call must not be repeated.
        """
        await self.events(self._own_events().failure(body, is_final=is_final))
        await self.end()

    async def end(self) -> None:
        """Complete the stream; sends the response start if no event was sent."""
        if not self.has_begun:
            await self.events(b"")
        await self._send({"type": "http.response.body", "body": b""})

    def _own_events(self) -> StreamEvents:
        if self._events is None:
            self._events = self._dialect.events(self._form, self._call or StreamedCall("", "", 0))
        return self._events

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
