"""One call in the fast lane: the reader of its mailbox, which writes to the connection."""

import asyncio
from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

from proxy.access.limits import Share
from proxy.api.http import ANSWER_PART_BYTES, render_fields
from proxy.api.openai.relay import RUN_END_TIMEOUT_SECONDS, HeartbeatIntervals
from proxy.api.openai.reply import API_VERSION, STREAM_HEADERS
from proxy.api.openai.retries import CallIdentity
from proxy.api.openai.routes import OpenAiRoute
from proxy.jobs.model import Head, Outcome
from proxy.service.mailbox import Mailbox
from proxy.wire.sse import LastEvent

OK = 200
START = (
    b"HTTP/1.1 200 OK\r\n%b%bx-request-id: %b\r\n%bx-job-id: %b\r\n"
    b"openai-processing-ms: %d\r\nopenai-version: %b\r\n\r\n"
)
STREAM_FIELDS = render_fields([*STREAM_HEADERS, (b"transfer-encoding", b"chunked")])
LAST_CHUNK = b"0\r\n\r\n"
NEVER = float("inf")


class LaneConnection(Protocol):
    """The connection of one call in the fast lane. `loop`: its event loop."""

    loop: asyncio.AbstractEventLoop

    @property
    def default_headers(self) -> list[tuple[bytes, bytes]]:
        """The header fields of every response of the server, such as `date`."""
        ...

    @property
    def is_paused(self) -> bool:
        """True while the client does not read what was written."""
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
        now = asyncio.get_running_loop().time()
        ended = 0
        try:
            for call in calls:
                call.proceed(now)
                ended += 1
        finally:
            if ended < len(calls):
                # A bug of the proxy, which the event loop logs: only this client is disconnected.
                calls[ended].abort()
                for call in calls[ended + 1 :]:
                    self.add(call)


class CallFacts(NamedTuple):
    """The facts about a call that do not change.

    `model`: for messages, also if the call names none (`named_model` is then empty). `fields`:
    further header fields of the response. `identity`: None if no client repeats the call. `leave`:
    counts the end of the call.
    """

    route: OpenAiRoute
    model: str
    named_model: str
    key_id: str
    request_id: bytes
    fields: list[tuple[bytes, bytes]]
    intervals: HeartbeatIntervals | None
    is_streaming: bool
    identity: CallIdentity | None
    share: Share
    leave: Callable[[], None]


class CallEnds(Protocol):
    """The ways in which a call leaves the lane."""

    def end(self, call: "FastCall") -> None:
        """End a call: its job, its memory, and its place in the caller's limits."""
        ...

    def lose(self, call: "FastCall") -> None:
        """End a call whose client has left, or let its run continue for a retry."""
        ...

    async def resume(self, call: "FastCall", scope: Any, receive: Any, send: Any) -> None:
        """Continue the call, as an ASGI application."""
        ...


class FastCall:
    """One call: the reader of its mailbox. `has_begun` is True once the response start was sent,
    `last` knows the last event that was written, at `written_at` (the event loop's time).
    """

    __slots__ = (
        "_alarm", "_begun_at", "_connection", "_ends", "_is_changed", "_is_paused", "_turn",
        "facts", "has_begun", "last", "mailbox", "written_at",
    )  # fmt: skip

    def __init__(
        self, facts: CallFacts, mailbox: Mailbox, connection: LaneConnection, ends: CallEnds
    ) -> None:
        self.facts = facts
        self.mailbox = mailbox
        self.has_begun = False
        self.last = LastEvent()
        self.written_at = 0.0
        self._connection = connection
        self._ends = ends
        self._begun_at = 0.0
        self._turn: Turn | None = None
        self._is_changed = False
        # The client does not read what was written.
        self._is_paused = False
        self._alarm = NEVER

    def start(self, turn: Turn, now: float) -> None:
        """Begin to read the mailbox."""
        self._turn = turn
        self._begun_at = now
        self.written_at = now
        if self.facts.intervals is not None:
            self._set_alarm()
        if self._connection.is_paused:
            # By an earlier response that the client has not read.
            self.pause(now)
        self.mailbox.abort = self._connection.abort
        self.mailbox.on_change = self.on_change

    def on_change(self) -> None:
        """Note a change of the mailbox, or that the client reads again."""
        if self._turn is not None and not self._is_changed:
            self._is_changed = True
            self._turn.add(self)

    def proceed(self, now: float) -> None:
        """Write what has arrived; end the call, or leave the lane."""
        self._is_changed = False
        if self._turn is None or self._is_paused:
            return
        mailbox = self.mailbox
        head = mailbox.response_head
        data = b""
        if self.has_begun:
            data = self._consume(now)
        elif head is not None:
            if head.fields or head.status != OK:
                self.leave_lane()
                return
            if head.is_stream:
                data = self._begin(now)
        if data and mailbox.is_readable:
            self._connection.write(data)
            self.on_change()
        elif mailbox.outcome is not None:
            self._finish(head, data, mailbox.outcome)
        elif data:
            self._connection.write(data)
            if mailbox.is_whole:
                self._set_alarm()
        elif not mailbox.is_taken or self._is_late(now):
            self.leave_lane()

    def _finish(self, head: Head | None, data: bytes, outcome: Outcome) -> None:
        """End the response, after the last bytes of a stream."""
        mailbox = self.mailbox
        if head is not None and (mailbox.is_whole or outcome.answered):
            if head.is_stream and self.has_begun:
                self._connection.write(data + LAST_CHUNK)
                self._end()
                return
            if not head.is_stream and mailbox.backlog <= ANSWER_PART_BYTES:
                self._connection.write(self._answer(head, mailbox.consume(NEVER)))
                self._end()
                return
        if data:
            self._connection.write(data)
        self.leave_lane()

    def leave_lane(self) -> None:
        """Let the application continue the call."""
        self._stop_reading()
        self._connection.leave_lane(self)

    def lose(self) -> None:
        """End the call, because the client has left."""
        self.mailbox.abandoned = True
        self._stop_reading()
        self._ends.lose(self)

    def abort(self) -> None:
        """Close the connection."""
        self._connection.abort()

    async def resume(self, scope: Any, receive: Any, send: Any) -> None:
        """Continue the call, as an ASGI application."""
        await self._ends.resume(self, scope, receive, send)

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
        self._ends.end(self)
        self._connection.end_call()

    def _begin(self, now: float) -> bytes:
        """Return the start of a stream, with what has arrived of it; empty if nothing has."""
        chunk = self._consume(now)
        if not chunk:
            return b""
        self.mailbox.left = True
        self.has_begun = True
        return self._head(STREAM_FIELDS) + chunk

    def _consume(self, now: float) -> bytes:
        """Return the bytes to write for what has arrived of a stream; empty if nothing has."""
        mailbox = self.mailbox
        data = mailbox.consume()
        if not data:
            return b""
        self.written_at = now
        self.last.feed(data, more=mailbox.is_mid_event)
        mailbox.is_whole = self.last.has_come
        return b"%x\r\n%b\r\n" % (len(data), data)

    def _answer(self, head: Head, body: bytes) -> bytes:
        content = b"content-type: %b\r\ncontent-length: %d\r\n"
        return self._head(content % (head.content_type.encode(), len(body))) + body

    def _head(self, content: bytes) -> bytes:
        """Return the start of a response with the status 200, like `Reply`.

        `content`: the fields about its body.
        """
        elapsed_ms = round((self._connection.loop.time() - self._begun_at) * 1000)
        return START % (
            render_fields(self._connection.default_headers),
            content,
            self.facts.request_id,
            render_fields(self.facts.fields),
            self.mailbox.job.id.encode(),
            elapsed_ms,
            API_VERSION,
        )

    def _set_alarm(self) -> None:
        self._alarm = self._due()
        self.mailbox.alarm_at(None if self._alarm == NEVER else self._alarm)

    def _due(self) -> float:
        """Return the time at which the call leaves the lane if nothing is written until then."""
        if self.mailbox.is_whole:
            return self.written_at + RUN_END_TIMEOUT_SECONDS
        if self.facts.intervals is None:
            return NEVER
        return self.written_at + min(self.facts.intervals.silent, self.facts.intervals.longest)

    def _is_late(self, now: float) -> bool:
        if now < self._alarm:
            return False
        self._set_alarm()
        return now >= self._alarm
