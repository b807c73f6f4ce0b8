"""Relays a job's output from its mailbox to its client: the hot path of every OpenAI call.

Everything that arrives in one iteration of the event loop costs one wait and one write. A
disconnect of the client ends the same wait.

A disconnect cancels the job, unless the client has received the complete output, that is, the final
event of a stream was written to an open connection. From then on the end of the run decides the
outcome, if it arrives within `RUN_END_TIMEOUT_SECONDS`; otherwise the job is completed and the run
is stopped.

`Reply` writes the HTTP response. Its start (status and headers) is delayed until the status is
known: it is sent with the first bytes of the engine's body, or, for a stream whose job is still
queued, as `200` with the first heartbeat.
"""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeAlias

from proxy.access.limits import Share
from proxy.api.errors import ApiError
from proxy.api.http import paid, send_body
from proxy.api.openai.dialects import OPENAI, Dialect
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
# A client parses bytes after such a response start as the next response.
STATUSES_WITHOUT_BODY = (204, 304)
# Has a body, which must be empty.
RESET_CONTENT = 205
# The beginning of the names of the proxy's own fields for rate limits.
OWN_RATE_LIMITS = b"x-ratelimit-"

Explain: TypeAlias = Callable[[int, bytes], ApiError | None]


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
        share: Share,
        abort: Callable[[], None],
        *,
        only_head: bool = False,
    ) -> None:
        self._send = send
        self._abort = abort
        self._headers = headers
        self._share = share
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


@dataclass(frozen=True, slots=True)
class HeartbeatIntervals:
    """Seconds without output after which a stream sends a heartbeat."""

    # Before the first heartbeat of a queued job.
    first: float = 1.0
    # Between further heartbeats of a queued job.
    queued: float = 5.0
    # For a running job.
    silent: float = 15.0


class Relay:
    """Relays the output of one job to its client.

    `intervals` is None for a request without `stream`, which receives no heartbeats. `explain`
    returns the error that replaces an answer of the engine, by its status and body, or None.
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
        # The time of the last write, or of the change from queued to running.
        self._active_at = self._clock()
        self._was_taken = False
        self._last = LastEvent()

    async def run(self, receive: Any) -> None:
        """Relay until the response is complete or the client has disconnected.

        The job has ended when this returns.
        """
        mailbox = self._mailbox
        watcher = asyncio.ensure_future(_watch(receive, mailbox))
        try:
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
                    mailbox.is_whole and self._clock() >= self._active_at + RUN_END_TIMEOUT_SECONDS
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
        self._active_at = self._clock()
        mailbox.writing(self._active_at)
        if not self._reply.has_begun:
            self._reply.forward(mailbox.response_head)
        await self._reply.events(data)
        mailbox.writing(None)
        self._last.feed(data, more=mailbox.is_mid_event)
        mailbox.is_whole = self._last.has_come and (mailbox.is_whole or not mailbox.abandoned)

    async def _wait(self) -> None:
        """Wait for a change of the mailbox, or send a heartbeat if one is due.

        Heartbeats are sent only between two events of a stream.
        """
        if self._mailbox.is_whole:
            await self._mailbox.wait(self._active_at + RUN_END_TIMEOUT_SECONDS)
            return
        if self._intervals is None or self._mailbox.is_mid_event:
            await self._mailbox.wait(None)
            return
        now = self._clock()
        if self._mailbox.is_taken != self._was_taken:
            self._was_taken = self._mailbox.is_taken
            self._active_at = now
        if self._was_taken:
            interval = self._intervals.silent
        elif self._reply.is_stream:
            interval = self._intervals.queued
        else:
            interval = self._intervals.first
        due = self._active_at + interval
        if now < due:
            await self._mailbox.wait(due)
            return
        self._active_at = now
        if self._was_taken:
            await self._reply.heartbeat("running")
        else:
            position = self._interactive.ahead(self._mailbox.job) + 1
            await self._reply.heartbeat(f"queued position={position}")

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
        if error is not None:
            await reply.error(error)
        elif not reply.is_stream:
            reply.forward(head)
            await reply.whole(head.status, head.content_type.encode(), body)
        else:
            # A heartbeat has begun an event stream, but the engine has returned a JSON body.
            await reply.failed(body)


async def _watch(receive: Any, mailbox: Mailbox) -> None:
    """Mark the mailbox as abandoned when the client disconnects."""
    while (await receive())["type"] != "http.disconnect":
        pass
    mailbox.abandon()
