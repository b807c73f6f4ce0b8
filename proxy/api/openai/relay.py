"""Relays a job's output from its mailbox to its client: the hot path of every OpenAI call.

Everything that arrives in one iteration of the event loop costs one wait and one write. A
disconnect of the client ends the same wait.

A disconnect cancels the job, unless the client has received the complete output, that is, the final
event of a stream was written to an open connection. From then on the end of the run decides the
outcome, if it arrives within `RUN_END_TIMEOUT_SECONDS`; otherwise the job is completed and the run
is stopped.

`Reply` writes the HTTP response. Its start (status and headers) is delayed until the status is
known: it is sent with the first bytes of the engine's body, or, for a stream whose job is still
queued, as `200` with the first heartbeat. A call that asked for whitespace gets `200` at once.
"""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Self, TypeAlias

from proxy.access.limits import Share
from proxy.api.errors import ApiError
from proxy.api.http import paid, send_body
from proxy.api.openai.dialects import OPENAI, Dialect
from proxy.api.openai.stream_events import HeartbeatForm, StreamedCall, StreamEvents
from proxy.jobs.model import Head
from proxy.service.interactive import InteractiveJobs
from proxy.service.mailbox import Mailbox
from proxy.wire.sse import LastEvent

NO_LIMIT = float("inf")
# From the final event of a stream to the worker's `End` frame; usually one millisecond.
RUN_END_TIMEOUT_SECONDS = 2.0
BLANK_LINE = b"\n\n"

STREAM_HEADERS = [
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-cache, no-transform"),
    (b"x-accel-buffering", b"no"),
]
API_VERSION = b"2020-10-01"
PADDED_HEADERS = [(b"content-type", b"application/json"), *STREAM_HEADERS[1:]]
# Clients and intermediaries with a timeout get a heartbeat in half of it, but not more often.
HEARTBEAT_MIN_SECONDS = 1.0
# Statuses of an engine's response for which a repetition of the call is useless.
FINAL_SERVER_ERRORS = (500, 501)
SHOULD_RETRY = b"x-should-retry"
RETRIED_CLIENT_ERRORS = (408, 409, 425, 429)
# A client parses bytes after such a response start as the next response.
STATUSES_WITHOUT_BODY = (204, 304)
# Has a body, which must be empty.
RESET_CONTENT = 205
# The beginning of the names of the proxy's own fields for rate limits.
OWN_RATE_LIMITS = b"x-ratelimit-"

Explain: TypeAlias = Callable[[int, bytes], ApiError | None]


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
        is_final = row.should_retry is False
        if self.is_stream or (is_final and self.sends_late(row.status)):
            await self.failed(body, is_final=is_final)
        else:
            await self.whole(row.status, b"application/json", body, error.headers())

    def sends_late(self, status: int) -> bool:
        """Return True if a final error with this status is sent as events instead (see
        `Dialect.has_late_errors`).
        """
        is_stream = self._call is not None and not self.has_begun
        return is_stream and self._dialect.has_late_errors and status >= FINAL_SERVER_ERRORS[0]

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


@dataclass(frozen=True, slots=True)
class HeartbeatIntervals:
    """Seconds without output after which a stream sends a heartbeat, and the heartbeat's form."""

    # Before the first heartbeat of a queued job.
    first: float = 1.0
    # Between further heartbeats of a queued job.
    queued: float = 5.0
    # For a running job.
    silent: float = 15.0
    form: HeartbeatForm = HeartbeatForm.AUTO
    # The longest time between two writes.
    longest: float = NO_LIMIT

    def within(self, timeout: float | None) -> Self:
        """Return the intervals for a client that accepts this many seconds without a byte."""
        if timeout is None:
            return self
        return replace(self, longest=max(HEARTBEAT_MIN_SECONDS, timeout / 2))


class Relay:
    """Relays the output of one job to its client.

    `intervals` is None for a call without heartbeats. `explain` returns the error that replaces an
    answer of the engine, by its status and body, or None.
    """

    def __init__(
        self,
        interactive: InteractiveJobs,
        mailbox: Mailbox,
        reply: Reply,
        *,
        intervals: HeartbeatIntervals | None,
        explain: Explain,
    ) -> None:
        self._interactive = interactive
        self._mailbox = mailbox
        self._reply = reply
        self._intervals = intervals
        self._explain = explain
        self._clock = asyncio.get_running_loop().time
        self._written_at = self._clock()
        # The time of the last write, or of the change from queued to running.
        self._active_at = self._written_at
        self._was_taken = False
        self._last = LastEvent()

    def continue_from(self, written_at: float, last: LastEvent) -> None:
        """Continue a response whose last write was at `written_at` (the event loop's time), and
        whose last event is `last`.
        """
        self._written_at = written_at
        self._active_at = written_at
        self._was_taken = self._mailbox.is_taken
        self._last = last

    async def run(self, receive: Any) -> None:
        """Relay until the response is complete or the client has disconnected.

        The job has ended when this returns.
        """
        mailbox = self._mailbox
        watcher = asyncio.ensure_future(_watch(receive, mailbox))
        try:
            if self._intervals is not None and self._intervals.form is HeartbeatForm.WHITESPACE:
                await self._reply.begin_padding()
            while not mailbox.abandoned or mailbox.is_whole:
                if (
                    (head := mailbox.response_head) is not None
                    and head.is_stream
                    and (data := mailbox.consume())
                ):
                    await self._write(data)
                elif mailbox.outcome is not None:
                    await self._finish(head)
                    return
                elif (
                    mailbox.is_whole and self._clock() >= self._written_at + RUN_END_TIMEOUT_SECONDS
                ):
                    self._interactive.passed_on(mailbox)
                    await self._reply.end()
                    return
                else:
                    await self._wait()
        finally:
            watcher.cancel()
            self._interactive.hang_up(mailbox)

    async def _write(self, data: bytes) -> None:
        mailbox = self._mailbox
        mailbox.left = True
        self._written_at = self._active_at = self._clock()
        mailbox.writing(self._written_at)
        if not self._reply.has_begun:
            self._reply.forward(mailbox.response_head)
        await self._reply.events(data)
        mailbox.writing(None)
        self._reply.note(data)
        self._last.feed(data, more=mailbox.is_mid_event)
        mailbox.is_whole = self._last.has_come and (mailbox.is_whole or not mailbox.abandoned)

    async def _wait(self) -> None:
        """Wait for a change of the mailbox, or send a heartbeat if one is due.

        Heartbeats are sent only between two events of a stream.
        """
        if self._mailbox.is_whole:
            await self._mailbox.wait(self._written_at + RUN_END_TIMEOUT_SECONDS)
            return
        if self._intervals is None or self._mailbox.is_mid_event:
            await self._mailbox.wait(None)
            return
        now = self._clock()
        if self._mailbox.is_taken != self._was_taken:
            self._was_taken = self._mailbox.is_taken
            self._active_at = now
        due = min(
            self._active_at + self._interval(self._intervals),
            self._written_at + self._intervals.longest,
        )
        if now < due:
            await self._mailbox.wait(due)
            return
        self._written_at = self._active_at = now
        if self._was_taken:
            await self._reply.heartbeat("running")
        else:
            job = self._mailbox.job
            position = self._interactive.ahead(job) + 1
            reason = self._interactive.reason_of(job)
            await self._reply.heartbeat(f"queued position={position}\n{reason}")

    def _interval(self, intervals: HeartbeatIntervals) -> float:
        if self._was_taken or self._reply.is_padded:
            return intervals.silent
        return intervals.queued if self._reply.is_stream else intervals.first

    async def _finish(self, head: Head | None) -> None:
        outcome = self._mailbox.outcome
        reply = self._reply
        if self._mailbox.is_whole:
            # Nothing may follow the last event, although its job has ended in another way.
            await reply.end()
        elif outcome is None or head is None or not outcome.answered:
            error = ApiError("internal_error", "The worker ended the run without a response.")
            if outcome is not None and outcome.error is not None:
                error = ApiError(outcome.error.code, outcome.error.message)
            # Terminate an incomplete event, so that the error is an event of its own.
            if self._mailbox.is_mid_event:
                await reply.events(BLANK_LINE)
            await reply.error(error)
        elif head.is_stream:
            await reply.end()
        else:
            await self._answer(head, self._mailbox.consume(NO_LIMIT))

    async def _answer(self, head: Head, body: bytes) -> None:
        """Send an answer of the engine that is not a stream."""
        reply = self._reply
        error = self._explain(head.status, body)
        is_final = _is_final(head)
        if error is not None:
            await reply.error(error)
        elif reply.is_stream or (is_final and reply.sends_late(head.status)):
            # A JSON body of the engine, and a heartbeat has begun an event stream.
            await reply.failed(body, is_final=is_final)
        else:
            reply.forward(head)
            await reply.whole(head.status, head.content_type.encode(), body)


def _is_final(head: Head) -> bool:
    """Return True if the engine would answer a repetition of the call with the same error.

    An engine can say so itself, in the header that the OpenAI SDKs obey.
    """
    said = dict(head.fields).get(SHOULD_RETRY, b"").lower()
    if said in (b"true", b"false"):
        return said == b"false"
    status = head.status
    if status < FINAL_SERVER_ERRORS[0]:
        return status not in RETRIED_CLIENT_ERRORS
    return status in FINAL_SERVER_ERRORS


async def _watch(receive: Any, mailbox: Mailbox) -> None:
    """Mark the mailbox as abandoned when the client disconnects."""
    while (await receive())["type"] != "http.disconnect":
        pass
    mailbox.abandon()
