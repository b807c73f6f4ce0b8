"""One call in the fast lane: the reader of its mailbox, which writes to the connection."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, Protocol, TypeAlias

from proxy.access.limits import Share
from proxy.api.http import ANSWER_PART_BYTES
from proxy.api.openai.relay import RUN_END_TIMEOUT_SECONDS, HeartbeatIntervals
from proxy.api.openai.reply import API_VERSION, STREAM_HEADERS
from proxy.api.openai.retries import CallIdentity
from proxy.api.openai.routes import OpenAiRoute
from proxy.jobs.model import Head, Outcome
from proxy.service.mailbox import Mailbox
from proxy.wire.sse import LastEvent

OK = 200
CHUNKED = (b"transfer-encoding", b"chunked")
LAST_CHUNK = b"0\r\n\r\n"
NEVER = float("inf")

Application: TypeAlias = Callable[[Any, Any, Any], Awaitable[None]]
"""An ASGI application."""


class LaneConnection(Protocol):
    """The connection of one call in the fast lane."""

    @property
    def default_headers(self) -> list[tuple[bytes, bytes]]:
        """The header fields of every response of the server, such as `date`."""
        ...

    def write(self, data: bytes) -> None:
        """Write bytes of the response."""
        ...

    def abort(self) -> None:
        """Close the connection at once."""
        ...

    def end_call(self) -> None:
        """Note that the response is complete."""
        ...

    def leave_lane(self, call: "FastCall") -> None:
        """Let the application continue the call (`OpenAi.resume`)."""
        ...


class Turn:
    """The calls whose mailbox has changed in this turn of the event loop."""

    def __init__(self) -> None:
        self._calls: list[FastCall] = []

    def add(self, call: "FastCall") -> None:
        """Let a call write at the end of this turn."""
        if not self._calls:
            asyncio.get_running_loop().call_soon(self._end)
        self._calls.append(call)

    def _end(self) -> None:
        calls = self._calls
        self._calls = []
        ended = 0
        try:
            for call in calls:
                call.proceed()
                ended += 1
        finally:
            if ended < len(calls):
                # A bug of the proxy, which the event loop logs: only this client is disconnected.
                calls[ended].connection.abort()
                for call in calls[ended + 1 :]:
                    self.add(call)


class FastCall:
    """One call: the reader of its mailbox, and what has been written."""

    __slots__ = (
        "_alarm", "_is_changed", "_is_paused", "_turn", "begun_at", "connection", "has_begun",
        "headers", "identity", "intervals", "is_streaming", "key_id", "last", "mailbox", "model",
        "named_model", "on_end", "on_lose", "request_id", "resume", "route", "share", "written_at",
    )  # fmt: skip

    def __init__(
        self,
        mailbox: Mailbox,
        connection: LaneConnection,
        route: OpenAiRoute,
        model: str,
        named_model: str,
        share: Share,
    ) -> None:
        self.mailbox = mailbox
        self.connection = connection
        self.route = route
        self.model = model
        self.named_model = named_model
        self.share = share
        self.key_id = ""
        self.request_id = b""
        # Header fields of the response, after its content type.
        self.headers: list[tuple[bytes, bytes]] = []
        self.intervals: HeartbeatIntervals | None = None
        self.is_streaming = False
        # None: no client repeats the call.
        self.identity: CallIdentity | None = None
        self.has_begun = False
        self.last = LastEvent()
        self.begun_at = 0.0
        self.written_at = 0.0
        self.on_end: Callable[[], None] = _nothing
        """Ends the call: its job, and its place in the caller's limits."""
        self.on_lose: Callable[[], None] = _nothing
        """Called before `on_end` if the client has left."""
        self.resume: Application = _refuse
        """The application that continues a call which has left the lane."""
        self._turn: Turn | None = None
        self._is_changed = False
        # The client does not read what was written.
        self._is_paused = False
        self._alarm = NEVER

    def start(self, turn: Turn, now: float) -> None:
        """Begin to read the mailbox."""
        self._turn = turn
        self.begun_at = now
        self.written_at = now
        self._set_alarm()
        self.mailbox.abort = self.connection.abort
        self.mailbox.on_change = self.on_change

    def on_change(self) -> None:
        """Note a change of the mailbox, or that the client reads again."""
        if self._turn is not None and not self._is_changed:
            self._is_changed = True
            self._turn.add(self)

    def proceed(self) -> None:
        """Write what has arrived; end the call, or leave the lane."""
        self._is_changed = False
        if self._turn is None:
            return
        mailbox = self.mailbox
        head = mailbox.response_head
        data = b""
        if head is not None and (head.fields or head.status != OK):
            self.leave_lane()
            return
        is_stream = self.has_begun or (head is not None and head.is_stream)
        if is_stream:
            if self._is_paused:
                return
            data = self._consume()
            if mailbox.is_readable:
                self.connection.write(data)
                self.on_change()
                return
        if mailbox.outcome is not None:
            self._finish(head, data, mailbox.outcome)
            return
        if data:
            self.connection.write(data)
            if mailbox.is_whole:
                self._set_alarm()
        elif not mailbox.is_taken or self._is_late():
            self.leave_lane()

    def _finish(self, head: Head | None, data: bytes, outcome: Outcome) -> None:
        """End the response, after the last bytes of a stream."""
        mailbox = self.mailbox
        if head is not None and (mailbox.is_whole or outcome.answered):
            if head.is_stream and self.has_begun:
                self.connection.write(data + LAST_CHUNK)
                self._end()
                return
            if not head.is_stream and mailbox.backlog <= ANSWER_PART_BYTES:
                self.connection.write(self._answer(head, mailbox.consume(NEVER)))
                self._end()
                return
        if data:
            self.connection.write(data)
        self.leave_lane()

    def leave_lane(self) -> None:
        """Let the application continue the call."""
        self._stop_reading()
        self.connection.leave_lane(self)

    def lose(self) -> None:
        """End the call, because the client has left."""
        self.mailbox.abandoned = True
        self._stop_reading()
        self.on_lose()
        self.on_end()

    def pause(self, now: float | None) -> None:
        """Note the time at which the client stopped reading; None: it reads again."""
        self.mailbox.writing(now)
        self._is_paused = now is not None
        if now is None:
            self.on_change()

    def _stop_reading(self) -> None:
        self._turn = None
        self.mailbox.on_change = None
        self.mailbox.alarm_at(None)
        self.mailbox.writing(None)

    def _end(self) -> None:
        self._stop_reading()
        self.on_end()
        self.connection.end_call()

    def _consume(self) -> bytes:
        """Return the bytes to write for what has arrived of a stream; empty if nothing has."""
        mailbox = self.mailbox
        data = mailbox.consume()
        if not data:
            return b""
        mailbox.left = True
        self.written_at = asyncio.get_running_loop().time()
        self.last.feed(data, more=mailbox.is_mid_event)
        mailbox.is_whole = self.last.has_come
        chunk = b"%x\r\n%b\r\n" % (len(data), data)
        if self.has_begun:
            return chunk
        self.has_begun = True
        return self._head([*STREAM_HEADERS, *self.headers, CHUNKED]) + chunk

    def _answer(self, head: Head, body: bytes) -> bytes:
        content = [
            (b"content-type", head.content_type.encode()),
            (b"content-length", b"%d" % len(body)),
        ]
        return self._head(content + self.headers) + body

    def _head(self, headers: list[tuple[bytes, bytes]]) -> bytes:
        """Return the start of a response with the status 200, like `Reply`."""
        elapsed_ms = round((asyncio.get_running_loop().time() - self.begun_at) * 1000)
        own = [
            (b"openai-processing-ms", b"%d" % elapsed_ms),
            (b"openai-version", API_VERSION),
        ]
        fields = [
            b"%b: %b\r\n" % field for field in (*self.connection.default_headers, *headers, *own)
        ]
        return b"HTTP/1.1 200 OK\r\n" + b"".join(fields) + b"\r\n"

    def _set_alarm(self) -> None:
        self._alarm = self._due()
        self.mailbox.alarm_at(None if self._alarm == NEVER else self._alarm)

    def _due(self) -> float:
        """Return the time at which the call leaves the lane if nothing is written until then."""
        if self.mailbox.is_whole:
            return self.written_at + RUN_END_TIMEOUT_SECONDS
        if self.intervals is None:
            return NEVER
        return self.written_at + min(self.intervals.silent, self.intervals.longest)

    def _is_late(self) -> bool:
        now = asyncio.get_running_loop().time()
        if now < self._alarm:
            return False
        self._set_alarm()
        return now >= self._alarm


def _nothing() -> None:
    pass


async def _refuse(_scope: Any, _receive: Any, _send: Any) -> None:
    raise RuntimeError("The call was not started by the fast lane.")
