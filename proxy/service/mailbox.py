"""Mailboxes: one between a worker's channel and the relay of each client that waits for an answer.

The channel puts in what a worker sends; the relay waits for changes and consumes it. A mailbox is a
state and not a list of events: any number of changes in one turn of the event loop wake the relay
once, and it sends everything that is there in one write.
"""

import asyncio
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass

from proxy.jobs.model import JobId, Outcome
from proxy.service.ports import WorkerPort
from proxy.wire.flow import ReceiveFlow

# Unread bytes of one stream. A worker that ignores `Pause` and exceeds this loses the run.
STREAM_MAX_BYTES = 1024 * 1024
# The memory that a chunk takes in addition to its bytes, so that a million chunks of one byte are
# bounded too.
CHUNK_OVERHEAD_BYTES = 64
# One write to a client. Bytes that it has not read wait in the mailbox and not in the buffer of the
# socket.
WRITE_BYTES = 64 * 1024
# An event up to this size is passed on whole or not at all; a larger one is passed on in pieces.
EVENT_MAX_BYTES = 256 * 1024
# A client that does not read for this long is disconnected.
STALL_SECONDS = 60.0

EVENT_STREAM = "text/event-stream"
FIRST_ERROR_STATUS = 400


@dataclass(frozen=True, slots=True)
class Head:
    """Status and Content-Type of the engine's response."""

    status: int
    content_type: str

    @property
    def is_stream(self) -> bool:
        """True if the body is an event stream that is passed on as it arrives.

        An error response is not a stream: it is passed on whole, with its own status.
        """
        return self.content_type.startswith(EVENT_STREAM) and self.status < FIRST_ERROR_STATUS


class Mailbox:
    """The answer of one job between channel and relay, as far as the client has not received it.

    `attempt` is 0 until a worker takes the job. `left` becomes True when output has been sent to
    the client: the attempt is then the only one whose output the client may see. `is_whole` becomes
    True when the last event of a stream has been written. `is_mid_event`: the bytes consumed last
    end inside an event. `abandoned`: the client has left. `is_taken`: a worker has the job now.
    `abort` closes the client's connection.
    """

    def __init__(self, job_id: JobId, max_answer: int) -> None:
        self.job_id = job_id
        self.attempt = 0
        self.head: Head | None = None
        self.outcome: Outcome | None = None
        self.left = False
        self.is_whole = False
        self.is_mid_event = False
        self.abandoned = False
        self.is_taken = False
        self.abort: Callable[[], None] = _nothing
        self._max_answer = max_answer
        # Each chunk, and True if it ends inside an event.
        self._chunks: list[tuple[bytes, bool]] = []
        self._flow = ReceiveFlow()
        # The parts of an incomplete event that is held back until it is complete.
        self._parts: list[bytes] = []
        self._parts_size = 0
        # The current event is too large to be held back.
        self._in_pieces = False
        self._port: WorkerPort | None = None
        self._waiter: asyncio.Future[None] | None = None
        self._alarm: float | None = None
        self._stall: float | None = None

    @property
    def backlog(self) -> int:
        """Bytes that wait for the client."""
        return self._flow.backlog + self._parts_size

    # Called by the channel

    def begin(self, attempt: int, port: WorkerPort) -> None:
        """Start a run. Output of an earlier attempt is dropped; the client has not seen it."""
        self._forget()
        self.attempt = attempt
        self._port = port
        self.is_taken = True
        self._wake()

    def requeue(self) -> None:
        """Forget a run that was lost before any output was sent: the client keeps waiting and is
        not informed.
        """
        self._forget()
        self._port = None
        self.is_taken = False
        self._wake()

    def reattach(self, port: WorkerPort) -> None:
        """Continue the same run over another connection."""
        self._port = port
        self._flow.restart()
        self._pause_if_needed()

    def put_head(self, head: Head) -> None:
        """Store the response head. Nothing is sent yet: before the first body byte the response can
        still change.
        """
        self.head = head
        self._wake()

    def put_chunk(self, data: bytes, *, more: bool) -> bool:
        """Take a piece of the answer; `more` means that the next piece continues the same event.

        An event is passed on once it is complete, or, above `EVENT_MAX_BYTES`, as its pieces
        arrive: then only the bytes that its reader has not taken are kept. An answer that is not a
        stream is one event. Returns False if this exceeds the bytes kept for one client: the run
        has to be ended.
        """
        if more or self._parts:
            self._parts.append(data)
            self._parts_size += len(data)
            is_large = self._in_pieces or self._parts_size > EVENT_MAX_BYTES
            if not more or (self._is_stream and is_large):
                data = b"".join(self._parts)
                self._parts = []
                self._parts_size = 0
                self._pass_on(data, more=more)
            else:
                self._resume_if_possible()
        else:
            self._pass_on(data, more=False)
        cost = self.backlog + CHUNK_OVERHEAD_BYTES * (len(self._chunks) + len(self._parts))
        return cost <= (STREAM_MAX_BYTES if self._is_stream else self._max_answer)

    def end(self, outcome: Outcome) -> None:
        """Note that the job has ended. Only the first outcome counts."""
        if self.outcome is None:
            self.outcome = outcome
            self._wake()

    # Called by the relay

    def abandon(self) -> None:
        """Note that the client has left."""
        self.abandoned = True
        self._wake()

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
        if self._flow.backlog <= limit:
            taken = self._chunks
            self._chunks = []
        else:
            size = 0
            count = 0
            while size < limit:
                size += len(self._chunks[count][0])
                count += 1
            taken = self._chunks[:count]
            del self._chunks[:count]
        if taken:
            self.is_mid_event = taken[-1][1]
        data = taken[0][0] if len(taken) == 1 else b"".join([chunk for chunk, _ in taken])
        self._flow.consumed(len(data))
        self._resume_if_possible()
        return data

    def writing(self, since: float | None) -> None:
        """Note the time at which a write to the client began, or None when it is done."""
        self._stall = None if since is None else since + STALL_SECONDS

    # Called by the clock

    def tick(self, now: float) -> None:
        """Wake the relay if its alarm is due; disconnect a client that does not read."""
        if self._alarm is not None and now >= self._alarm:
            self._wake()
        if self._stall is not None and now >= self._stall:
            self._stall = None
            self.abort()

    def _forget(self) -> None:
        self.head = None
        self._chunks = []
        self._parts = []
        self._parts_size = 0
        self._in_pieces = False
        self._flow = ReceiveFlow()

    @property
    def _is_stream(self) -> bool:
        return self.head is not None and self.head.is_stream

    def _pass_on(self, data: bytes, *, more: bool) -> None:
        """Make bytes available to the relay; `more` means that they end inside an event."""
        self._in_pieces = more
        self._chunks.append((data, more))
        self._flow.received(len(data))
        self._pause_if_needed()
        self._wake()

    def _resume_if_possible(self) -> None:
        if self._port is None or not self._is_stream:
            return
        if self._flow.should_resume(held=self._parts_size):
            self._port.resume(self.job_id, self.attempt)

    def _pause_if_needed(self) -> None:
        if self._port is None or not self._is_stream:
            return
        if self._flow.should_pause():
            self._port.pause(self.job_id, self.attempt)

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)


def _nothing() -> None:
    pass


class Mailboxes:
    """The mailboxes of all clients that wait at this proxy."""

    def __init__(self) -> None:
        self._mailboxes: dict[JobId, Mailbox] = {}
        self._empty = asyncio.Event()
        self._empty.set()

    def __len__(self) -> int:
        return len(self._mailboxes)

    def __iter__(self) -> Iterator[Mailbox]:
        return iter(tuple(self._mailboxes.values()))

    def open(self, job_id: JobId, max_answer: int) -> Mailbox:
        """Return a new mailbox; the relay that asked for it closes it."""
        mailbox = Mailbox(job_id, max_answer)
        self._mailboxes[job_id] = mailbox
        self._empty.clear()
        return mailbox

    def close(self, job_id: JobId) -> None:
        """Remove the mailbox of a call that is over."""
        self._mailboxes.pop(job_id, None)
        if not self._mailboxes:
            self._empty.set()

    async def wait_empty(self, seconds: float) -> bool:
        """Wait up to `seconds` for all calls to finish; return True if they did."""
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._empty.wait()
        return not self._mailboxes

    def get(self, job_id: JobId) -> Mailbox | None:
        """Return the mailbox of a job whose client waits here."""
        return self._mailboxes.get(job_id)

    def sink(self, job_id: JobId, attempt: int) -> Mailbox | None:
        """Return the mailbox for the output of this attempt, or None if its output is no longer
        wanted.
        """
        mailbox = self._mailboxes.get(job_id)
        return mailbox if mailbox is not None and mailbox.attempt == attempt else None

    def tick(self, now: float) -> None:
        """Check the alarms of all mailboxes. A few calls a second cost less than a timer for each
        write.
        """
        for mailbox in self._mailboxes.values():
            mailbox.tick(now)
