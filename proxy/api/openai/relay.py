"""Relays a job's output from its mailbox to its client: the hot path of every OpenAI call.

Everything that arrives in one iteration of the event loop costs one wait and one write. A
disconnect of the client ends the same wait.

A disconnect cancels the job, unless the client has received the complete output, that is, the final
event of a stream was written to an open connection. From then on the end of the run decides the
outcome, if it arrives within `RUN_END_TIMEOUT_SECONDS`; otherwise the job is completed and the run
is stopped.
"""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Self, TypeAlias

from proxy.api.errors import RETRIED_CLIENT_ERRORS, ApiError
from proxy.api.openai.reply import FIRST_SERVER_ERROR, Reply
from proxy.api.openai.stream_events import HeartbeatForm
from proxy.jobs.model import Head
from proxy.service.interactive import InteractiveJobs
from proxy.service.mailbox import Mailbox
from proxy.wire.sse import LastEvent

NO_LIMIT = float("inf")
# From the final event of a stream to the worker's `End` frame; usually one millisecond.
RUN_END_TIMEOUT_SECONDS = 2.0
BLANK_LINE = b"\n\n"

# A client that announces its timeout gets a heartbeat after half of it, but not before this time.
HEARTBEAT_MIN_SECONDS = 1.0
# Statuses of an engine's response for which a repetition of the call is useless.
FINAL_SERVER_ERRORS = (500, 501)
SHOULD_RETRY = b"x-should-retry"

Explain: TypeAlias = Callable[[int, bytes], ApiError | None]


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
    if status < FIRST_SERVER_ERROR:
        return status not in RETRIED_CLIENT_ERRORS
    return status in FINAL_SERVER_ERRORS


async def _watch(receive: Any, mailbox: Mailbox) -> None:
    """Mark the mailbox as abandoned when the client disconnects."""
    while (await receive())["type"] != "http.disconnect":
        pass
    mailbox.abandon()
