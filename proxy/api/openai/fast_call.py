"""One call in the fast lane: a mailbox that writes to the connection of its client."""

import asyncio
from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

from proxy.access.limits import Share
from proxy.api.http import ANSWER_PART_BYTES, render_fields
from proxy.api.openai.relay import RUN_END_TIMEOUT_SECONDS, HeartbeatIntervals
from proxy.api.openai.reply import API_VERSION, STREAM_HEADERS
from proxy.api.openai.retries import CallIdentity
from proxy.api.openai.routes import OpenAiRoute
from proxy.jobs.model import Head, InteractiveJob, Outcome, Owner
from proxy.service.mailbox import WRITE_BYTES, Mailbox, OnRunEnd
from proxy.service.ports import SinkVerdict
from proxy.wire.sse import LastEvent

OK = 200
START = (
    b"HTTP/1.1 200 OK\r\n%b%bx-request-id: %b\r\n%bx-job-id: %b\r\n"
    b"openai-processing-ms: %d\r\nopenai-version: %b\r\n\r\n"
)
STREAM_FIELDS = render_fields([*STREAM_HEADERS, (b"transfer-encoding", b"chunked")])
LAST_CHUNK = b"0\r\n\r\n"
NEVER = float("inf")
# The events of a call without a stream: shared by all calls, so nothing is added to it.
NO_EVENTS: list[bytes] = []
# A constant of the module: the member of an enum takes longer to look up.
ACCEPTED = SinkVerdict.ACCEPTED


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
    owner: Owner
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


class FastCall(Mailbox):
    """One call: a mailbox without a relay, which writes to the connection at the end of each turn
    in which it has changed. `has_begun` is True once the response start was sent. `last` detects if
    the last event written is a final one; `written_at` is the event loop's time of that write.

    A stream flows while its client reads and nothing of it waits. Its events are then written at
    the end of their turn, and never count as backlog. When the call leaves the lane, the
    application continues with this mailbox.
    """

    __slots__ = (
        "_begun_at", "_connection", "_ends", "_events", "_flows", "_is_changed", "_is_paused",
        "_turn", "facts", "has_begun", "last", "written_at",
    )  # fmt: skip

    def __init__(
        self,
        facts: CallFacts,
        connection: LaneConnection,
        ends: CallEnds,
        job: InteractiveJob,
        max_answer: int,
        on_run_end: OnRunEnd,
    ) -> None:
        super().__init__(job, max_answer, on_run_end)
        self.facts = facts
        self.has_begun = False
        self.last = LastEvent()
        self.written_at = 0.0
        self._connection = connection
        self._ends = ends
        self._begun_at = 0.0
        # None before the start, and when the call has left the lane.
        self._turn: Turn | None = None
        self._is_changed = False
        # The client does not read what was written.
        self._is_paused = False
        # A stream has begun and nothing of it waits, so that its next events can be written.
        self._flows = False
        # The events of this turn.
        self._events: list[bytes] = NO_EVENTS

    def start(self, turn: Turn, now: float) -> None:
        """Begin to write."""
        self._turn = turn
        self._begun_at = now
        self.written_at = now
        self.abort = self._connection.abort
        if self.facts.intervals is not None:
            self._set_alarm()
        if self._connection.is_paused:
            # By an earlier response that the client has not read.
            self.pause(now)

    # `Sink`

    def chunk(self, attempt: int, data: bytes, *, more: bool) -> SinkVerdict:
        if self._flows:
            if not more and attempt == self.job.attempt and self.outcome is None:
                self._frames += 1
                self._events.append(data)
                self._wake()
                return ACCEPTED
            # The events of this turn come before this chunk.
            self._keep_events()
        return super().chunk(attempt, data, more=more)

    def _wake(self) -> None:
        if self._turn is None:
            super()._wake()
        elif not self._is_changed:
            self._is_changed = True
            self._turn.add(self)

    # Called at the end of a turn

    def proceed(self, now: float) -> None:
        """Write what has arrived; end the call, or leave the lane."""
        self._is_changed = False
        if self._turn is None or self._is_paused:
            return
        head = self.response_head
        data = b""
        if self.has_begun:
            data = self._consume(now)
        elif head is not None:
            if head.fields or head.status != OK:
                self.leave_lane()
                return
            if head.is_stream:
                data = self._begin(now)
        if data and self._chunks:
            self._connection.write(data)
            self._wake()
        elif self.outcome is not None:
            self._finish(head, data, self.outcome)
        elif data:
            self._connection.write(data)
            self._flows = not self._parts and not self.is_mid_event and not self._is_paused
            if self.is_whole:
                self._set_alarm()
        elif not self.is_taken or self._is_late(now):
            self.leave_lane()

    def _finish(self, head: Head | None, data: bytes, outcome: Outcome) -> None:
        """End the response, after the last bytes of a stream."""
        if head is not None and (self.is_whole or outcome.answered):
            if head.is_stream and self.has_begun:
                self._connection.write(data + LAST_CHUNK)
                self._end()
                return
            if not head.is_stream and self.backlog <= ANSWER_PART_BYTES:
                self._connection.write(self._answer(head, self.consume(NEVER)))
                self._end()
                return
        if data:
            self._connection.write(data)
        self.leave_lane()

    # Called by the connection

    def leave_lane(self) -> None:
        """Let the application continue the call."""
        self._stop_writing()
        self._connection.leave_lane(self)

    def lose(self) -> None:
        """End the call, because the client has left."""
        self.abandoned = True
        self._stop_writing()
        self._ends.lose(self)

    async def resume(self, scope: Any, receive: Any, send: Any) -> None:
        """Continue the call, as an ASGI application."""
        await self._ends.resume(self, scope, receive, send)

    def pause(self, now: float | None) -> None:
        """Note the time at which the client stopped reading; None: it reads again."""
        self.writing(now)
        self._is_paused = now is not None
        if now is None:
            self._wake()
        else:
            self._keep_events()

    def _stop_writing(self) -> None:
        self._turn = None
        self._keep_events()
        self.alarm_at(None)
        self.writing(None)

    def _keep_events(self) -> None:
        """Let the events of this turn wait as chunks, which count as backlog."""
        self._flows = False
        if self._events:
            events = self._events
            self._events = []
            for data in events:
                self._pass_on(data, more=False)

    def _end(self) -> None:
        self._stop_writing()
        self._ends.end(self)
        self._connection.end_call()

    def _begin(self, now: float) -> bytes:
        """Return the start of a stream, with what has arrived of it; empty if nothing has."""
        chunk = self._consume(now)
        if not chunk:
            return b""
        self.left = True
        self.has_begun = True
        self._events = []
        return self._head(STREAM_FIELDS) + chunk

    def _consume(self, now: float) -> bytes:
        """Return the bytes to write for what has arrived of a stream; empty if nothing has."""
        data = self._take_events() if self._events else self.consume()
        if not data:
            return b""
        self.written_at = now
        self.last.feed(data, more=self.is_mid_event)
        self.is_whole = self.last.has_come
        return b"%x\r\n%b\r\n" % (len(data), data)

    def _take_events(self) -> bytes:
        """Return the events of this turn; of too many for one write, the first ones."""
        events = self._events
        if len(events) == 1:
            data = events.pop()
        else:
            data = b"".join(events)
            if len(data) > WRITE_BYTES:
                self._keep_events()
                return self.consume()
            events.clear()
        if self._flow.passed(len(data)):
            self._resume()
        return data

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
            self.job.id.encode(),
            elapsed_ms,
            API_VERSION,
        )

    def _set_alarm(self) -> None:
        due = self._due()
        self.alarm_at(None if due == NEVER else due)

    def _due(self) -> float:
        """Return the time at which the call leaves the lane if nothing is written until then."""
        if self.is_whole:
            return self.written_at + RUN_END_TIMEOUT_SECONDS
        if self.facts.intervals is None:
            return NEVER
        return self.written_at + min(self.facts.intervals.silent, self.facts.intervals.longest)

    def _is_late(self, now: float) -> bool:
        if self._alarm is None or now < self._alarm:
            return False
        self._set_alarm()
        return now >= self._due()
