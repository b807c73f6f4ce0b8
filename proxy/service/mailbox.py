"""The mailbox between a worker's channel and the relay of a client that waits for an answer.

The channel puts in what the worker sends; the relay waits for changes and consumes it. A mailbox is
a state and not a list of events: any number of changes in one turn of the event loop wake the relay
once, and it sends everything that is there in one write.
"""

import asyncio
from collections.abc import Callable
from typing import TypeAlias

from proxy.jobs.model import Head, InteractiveJob, Millis, Outcome
from proxy.jobs.policy import RunEnd
from proxy.service.kept import CHUNK_OVERHEAD_BYTES, KeptAnswer
from proxy.service.ports import SinkVerdict, WorkerPort
from proxy.wire.flow import ReceiveFlow
from proxy.wire.sse import EVENT_MAX_BYTES

# Unread bytes of one stream. A worker that ignores `Pause` and exceeds this loses the run.
STREAM_MAX_BYTES = 1024 * 1024
# One write to a client. Bytes that it has not read wait in the mailbox and not in the buffer of the
# socket.
WRITE_BYTES = 64 * 1024
# A client that does not read for this long is disconnected.
STALL_SECONDS = 60.0

# Constants of the module: the member of an enum takes longer to look up.
ACCEPTED = SinkVerdict.ACCEPTED
TOO_LARGE = SinkVerdict.TOO_LARGE

OnRunEnd: TypeAlias = Callable[["Mailbox", RunEnd], None]
"""Carries out the end of the current run of a mailbox's job."""


class Mailbox:
    """The answer of an interactive job between channel and relay, as far as its client has not
    received it. Implements `Sink`.

    `job` is the record of the job, `deadline` the time at which `policy.overdue` ends it, and
    `outcome` its end. `left` becomes True when output has been sent to the client: the run is then
    the only one whose output the client may see. `is_whole` becomes True when the last event of a
    stream has been written. `is_mid_event`: the bytes consumed last end inside an event.
    `abandoned`: the client has left. `abort` closes the client's connection. `kept`: what has been
    consumed, for a retry of the call. `on_change` is called at each change while no relay waits for
    it, `on_leave` in place of the end of the job when its relay has ended (see
    `InteractiveJobs.hang_up`).
    """

    __slots__ = (
        "_alarm", "_chunks", "_flow", "_frames", "_in_pieces", "_is_stream", "_limit",
        "_max_answer", "_on_run_end", "_parts", "_parts_size", "_port", "_stall", "_waiter",
        "abandoned", "abort", "deadline", "is_mid_event", "is_whole", "job", "kept", "left",
        "on_change", "on_leave", "outcome", "response_head",
    )  # fmt: skip

    takes_values = False

    def __init__(self, job: InteractiveJob, max_answer: int, on_run_end: OnRunEnd) -> None:
        self.job = job
        self.deadline: Millis | None = None
        self.response_head: Head | None = None
        self.outcome: Outcome | None = None
        self.left = False
        self.is_whole = False
        self.is_mid_event = False
        self.abandoned = False
        self.abort: Callable[[], None] = _nothing
        self.kept: KeptAnswer | None = None
        self.on_change: Callable[[], None] | None = None
        self.on_leave: Callable[[], None] | None = None
        self._max_answer = max_answer
        # The largest backlog, with overhead.
        self._limit = max_answer
        self._on_run_end = on_run_end
        # Each chunk, and True if it ends inside an event.
        self._chunks: list[tuple[bytes, bool]] = []
        self._flow = ReceiveFlow()
        # The response that has begun is an event stream.
        self._is_stream = False
        # The parts of an incomplete event that is held back until it is complete.
        self._parts: list[bytes] = []
        self._parts_size = 0
        # The current event is too large to be held back.
        self._in_pieces = False
        # Frames of the run that have arrived (see `wire.frames.Acknowledge`).
        self._frames = 0
        self._port: WorkerPort | None = None
        self._waiter: asyncio.Future[None] | None = None
        self._alarm: float | None = None
        self._stall: float | None = None

    @property
    def backlog(self) -> int:
        """Bytes that wait for the client."""
        return self._flow.backlog + self._parts_size

    @property
    def is_readable(self) -> bool:
        """True if `consume` returns bytes."""
        return bool(self._chunks)

    @property
    def is_taken(self) -> bool:
        """True while a worker has the job."""
        return self.job.taken_at is not None

    # `Sink`

    def begin(self, attempt: int, port: WorkerPort) -> None:
        if self._is_current(attempt):
            if self._port is not None:
                self._forget()
            self._port = port
            self._wake()

    def reattach(self, attempt: int, port: WorkerPort) -> SinkVerdict:
        if not self._is_current(attempt):
            return SinkVerdict.IGNORED
        self._port = port
        self._flow.restart()
        if self._flow.should_pause():
            self._pause()
        return SinkVerdict.ACCEPTED

    def head(self, attempt: int, head: Head) -> SinkVerdict:
        """Store the response head. Nothing is sent yet: before the first body byte the response can
        still change.
        """
        if not self._is_current(attempt):
            return SinkVerdict.IGNORED
        if self.response_head is not None:
            return SinkVerdict.REPEATED
        self.response_head = head
        self._is_stream = head.is_stream
        self._limit = STREAM_MAX_BYTES if head.is_stream else self._max_answer
        self._frames += 1
        self._wake()
        return SinkVerdict.ACCEPTED

    def chunk(self, attempt: int, data: bytes, *, more: bool) -> SinkVerdict:
        """Take a piece of the answer.

        An event is passed on once it is complete, or, above `EVENT_MAX_BYTES`, as its pieces
        arrive: then only the bytes that its reader has not taken are kept. An answer that is not a
        stream is one event.
        """
        if not self._is_current(attempt):
            return SinkVerdict.IGNORED
        if self.response_head is None:
            return SinkVerdict.HEADLESS
        self._frames += 1
        if more or self._parts:
            self._collect(data, more=more)
        else:
            self._pass_on(data, more=False)
        # Many chunks of one byte are bounded too.
        cost = self._flow.backlog + CHUNK_OVERHEAD_BYTES * len(self._chunks)
        if self._parts:
            cost += self._parts_size + CHUNK_OVERHEAD_BYTES * len(self._parts)
        return TOO_LARGE if cost > self._limit else ACCEPTED

    def output(
        self,
        attempt: int,  # noqa: ARG002 - only durable jobs have such output
        value: bytes,  # noqa: ARG002
        metrics: bytes,  # noqa: ARG002
        *,
        whole: bool,  # noqa: ARG002
    ) -> SinkVerdict:
        return SinkVerdict.IGNORED

    def end(self, attempt: int, end: RunEnd) -> None:
        if self._is_current(attempt):
            self._on_run_end(self, end)

    def drop(self, attempt: int) -> None:
        if attempt == self.job.attempt:
            self._port = None

    # Called by the jobs of the service

    def requeue(self) -> None:
        """Forget a run that was lost before any output was sent: the client keeps waiting and is
        not informed.
        """
        self._forget()
        self._port = None
        self._wake()

    def close(self, outcome: Outcome) -> None:
        """Note that the job has ended."""
        self.outcome = outcome
        self._wake()

    # Called by the relay

    def abandon(self) -> None:
        """Note that the client has left."""
        self.abandoned = True
        self._wake()

    def attach(self) -> None:
        """Let a new client receive the answer from its first byte."""
        self.on_change = None
        self.abandoned = False
        self.is_whole = False
        if self.kept is not None:
            self.kept.rewind()

    def detach(self, on_change: Callable[[], None]) -> None:
        """Note that no client waits any longer, but the run continues."""
        self.abort = _nothing
        self.writing(None)
        self.on_change = on_change

    def alarm_at(self, alarm: float | None) -> None:
        """Signal a change at about `alarm` (the event loop's time), and at each tick after that
        until another alarm is set; None: never.
        """
        self._alarm = alarm

    async def wait(self, alarm: float | None) -> None:
        """Wait until something has changed, or until about `alarm` (the event loop's time)."""
        self._alarm = alarm
        self._waiter = asyncio.get_running_loop().create_future()
        try:
            await self._waiter
        finally:
            self._waiter = None
            self._alarm = None

    def consume(self, limit: float = WRITE_BYTES) -> bytes:
        """Remove and return whole chunks of up to about `limit` bytes; empty if there are none."""
        if self.kept is not None and (again := self.kept.consume(limit)) is not None:
            data, self.is_mid_event = again
            return data
        chunks = self._chunks
        if len(chunks) == 1:
            data, self.is_mid_event = chunks.pop()
        elif chunks:
            data, self.is_mid_event = self._take(limit)
        else:
            return b""
        if self.kept is not None:
            self.kept.add(data, is_mid_event=self.is_mid_event)
        if self._flow.consumed(len(data), held=self._parts_size):
            self._resume()
        return data

    def writing(self, since: float | None) -> None:
        """Note the time at which a write to the client began, or None when it is done."""
        self._stall = None if since is None else since + STALL_SECONDS

    # Called by the sweeper

    def tick(self, now: float) -> None:
        """Wake the relay if its alarm is due; disconnect a client that does not read."""
        if self._alarm is not None and now >= self._alarm:
            self._wake()
        if self._stall is not None and now >= self._stall:
            self._stall = None
            self.abort()

    def _is_current(self, attempt: int) -> bool:
        # A job that is queued again keeps its attempt until the next take.
        job = self.job
        return attempt == job.attempt and job.taken_at is not None and self.outcome is None

    def _take(self, limit: float) -> tuple[bytes, bool]:
        """Remove and return chunks of up to about `limit` bytes, and True if they end inside an
        event.
        """
        size = 0
        count = 0
        while size < limit and count < len(self._chunks):
            size += len(self._chunks[count][0])
            count += 1
        taken = self._chunks[:count]
        del self._chunks[:count]
        return b"".join([chunk for chunk, _ in taken]), taken[-1][1]

    def _forget(self) -> None:
        self.response_head = None
        self._is_stream = False
        self._chunks = []
        self._parts = []
        self._parts_size = 0
        self._in_pieces = False
        self._frames = 0
        self._flow = ReceiveFlow()
        if self.kept is not None:
            self.kept.forget()

    def _collect(self, data: bytes, *, more: bool) -> None:
        """Take a part of an event; pass the event on when it is complete, or large."""
        self._parts.append(data)
        self._parts_size += len(data)
        is_large = self._in_pieces or self._parts_size > EVENT_MAX_BYTES
        if not more or (self._is_stream and is_large):
            data = b"".join(self._parts)
            self._parts = []
            self._parts_size = 0
            self._pass_on(data, more=more)
        else:
            self._resume()
            if self.on_change is not None:
                self.on_change()

    def _pass_on(self, data: bytes, *, more: bool) -> None:
        """Make bytes available to the relay; `more` means that they end inside an event."""
        self._in_pieces = more
        self._chunks.append((data, more))
        if self._flow.received(len(data)):
            self._pause()
        self._wake()

    def _resume(self) -> None:
        if self._port is None or not self._is_stream:
            return
        acknowledged = self._flow.resume(held=self._parts_size)
        if acknowledged is not None:
            self._port.resume(self.job.id, self.job.attempt, acknowledged, self._frames)

    def _pause(self) -> None:
        if self._port is not None and self._is_stream:
            self._port.pause(self.job.id, self.job.attempt)

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)
        if self.on_change is not None:
            self.on_change()


def _nothing() -> None:
    pass
