"""From a job's mailbox to its client: the hot path of every OpenAI call.

One wait and one write for everything that came in a turn of the event loop. The client's leaving wakes the same wait.

A client that leaves cancels its job, unless it has the whole answer: the last event of a stream has been written to a
connection that was open. From then on the run's own end decides the outcome, if it comes within `END_SECONDS`;
otherwise the job is completed and the run is stopped.
"""

import asyncio
from dataclasses import dataclass
from typing import Any

from proxy.api.errors import ApiError
from proxy.api.last_event import LastEvent
from proxy.api.openai.reply import Reply
from proxy.jobs.model import Job
from proxy.service.interactive import InteractiveJobs
from proxy.service.mailbox import Head, Mailbox

WHOLE = float("inf")
END_SECONDS = 2.0  # from a stream's last event to the worker's word of how the run ended; usually a millisecond
BLANK_LINE = b"\n\n"


@dataclass(frozen=True, slots=True)
class HeartbeatIntervals:
    """How many seconds a stream may be silent before its client hears that it is alive."""

    first: float = 1.0  # until a client that nobody serves hears that it is in the queue
    queued: float = 5.0  # and hears it again
    silent: float = 15.0  # once a worker has it


class Relay:
    """Passes one job's answer on to its client."""

    def __init__(
        self,
        interactive: InteractiveJobs,
        job: Job,
        mailbox: Mailbox,
        reply: Reply,
        *,
        intervals: HeartbeatIntervals | None,
    ) -> None:
        self._interactive, self._job, self._mailbox, self._reply = interactive, job, mailbox, reply
        self._intervals = (
            intervals  # None: the client asked for a whole answer, and hears nothing before it
        )
        self._clock = asyncio.get_running_loop().time
        self._spoke = (
            self._clock()
        )  # when the client last heard something, or something changed for it
        self._was_taken = False
        self._last = LastEvent()

    async def run(self, receive: Any) -> None:
        """Until the answer is complete or the client has left; then its job has ended, one way or the other."""
        mailbox = self._mailbox
        watcher = asyncio.ensure_future(_watch(receive, mailbox))
        try:
            while not mailbox.abandoned or mailbox.is_whole:
                if (
                    (head := mailbox.head) is not None
                    and head.is_stream
                    and (data := mailbox.consume())
                ):
                    await self._write(data)
                elif mailbox.outcome is not None:
                    await self._finish(head)
                    return
                elif mailbox.is_whole and self._clock() >= self._spoke + END_SECONDS:
                    await self._interactive.passed_on(mailbox)
                    await self._reply.end()
                    return
                else:
                    await self._wait()
        finally:
            watcher.cancel()
            await self._interactive.hang_up(mailbox)

    async def _write(self, data: bytes) -> None:
        mailbox = self._mailbox
        mailbox.left = True
        self._spoke = self._clock()
        mailbox.writing(self._spoke)
        await self._reply.events(data)
        mailbox.writing(None)
        self._last.feed(data, more=mailbox.is_mid_event)
        mailbox.is_whole = self._last.has_come and (mailbox.is_whole or not mailbox.abandoned)

    async def _wait(self) -> None:
        """Wait for the mailbox to change, and send heartbeats to a stream's client meanwhile, between two events."""
        if self._mailbox.is_whole:
            await self._mailbox.wait(self._spoke + END_SECONDS)
            return
        if self._intervals is None or self._mailbox.is_mid_event:
            await self._mailbox.wait(None)
            return
        now = self._clock()
        if self._mailbox.is_taken != self._was_taken:
            self._was_taken, self._spoke = self._mailbox.is_taken, now
        if self._was_taken:
            due = self._spoke + self._intervals.silent
        else:
            due = self._spoke + (
                self._intervals.queued if self._reply.is_stream else self._intervals.first
            )
        if now < due:
            await self._mailbox.wait(due)
            return
        self._spoke = now
        position = self._interactive.ahead(self._job) + 1
        await self._reply.heartbeat("running" if self._was_taken else f"queued position={position}")

    async def _finish(self, head: Head | None) -> None:
        outcome, reply = self._mailbox.outcome, self._reply
        if outcome is None or head is None or not outcome.answered:
            code = outcome.error.code if outcome and outcome.error else "internal_error"
            message = (
                outcome.error.message
                if outcome and outcome.error
                else "The worker ended without an answer."
            )
            if (
                self._mailbox.is_mid_event
            ):  # the error is an event of its own, not the end of half of another one
                await reply.events(BLANK_LINE)
            await reply.error(ApiError(code, message))
        elif head.is_stream:
            await reply.end()
        elif not reply.is_stream:
            await reply.whole(head.status, head.content_type.encode(), self._mailbox.consume(WHOLE))
        else:  # a stream was promised with a heartbeat, and the engine has answered with one JSON text
            await reply.failed(self._mailbox.consume(WHOLE))


async def _watch(receive: Any, mailbox: Mailbox) -> None:
    """Tell the mailbox when the client leaves."""
    while (await receive())["type"] != "http.disconnect":
        pass
    mailbox.abandon()
