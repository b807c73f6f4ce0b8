"""Between a worker's channel and a client's relay: one mailbox for each job whose client is waiting here.

The channel puts in what a worker sends; the relay waits, looks and drains. A mailbox is a state, not a list of events:
any number of changes in one turn of the event loop wake the relay once, and it sends what is there in one write.

All mailboxes of this proxy: one for each job whose client is waiting here.
"""

import asyncio
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass

from proxy.jobs.model import JobId, Outcome
from proxy.service.ports import WorkerPort
from proxy.wire.frames import STREAM_WINDOW

PAUSE_ABOVE = 128 * 1024  # bytes that wait for a slow reader before its worker is paused
RESUME_BELOW = 32 * 1024
STREAM_CAP = 1024 * 1024  # a worker that sends this much in spite of `pause` is cut
PIECE_BYTES = 64  # what a chunk costs beside its bytes: a million of one byte are no megabyte
DRAIN_BYTES = (
    64 * 1024
)  # one write to a client: what it has not read then waits here, not in the socket's buffer
EVENT_BYTES = (
    256 * 1024
)  # an event up to this size reaches its client whole or not at all; a larger one goes in pieces
STALL_SECONDS = 60.0  # a reader that stands still for so long is cut

EVENT_STREAM = "text/event-stream"
ERROR_STATUS = 400


@dataclass(frozen=True, slots=True)
class Head:
    """How the engine's answer begins."""

    status: int
    content_type: str

    @property
    def is_stream(self) -> bool:
        """Whether the body is a stream of events, to be passed on as it comes. An error never is: it has its status."""
        return self.content_type.startswith(EVENT_STREAM) and self.status < ERROR_STATUS


class Mailbox:
    """What has come for one job and has not yet left. Put in by one channel, drained by one relay."""

    def __init__(self, job_id: JobId, max_answer: int) -> None:
        self.job_id = job_id
        self.attempt = 0  # 0: nobody has taken the job yet
        self.head: Head | None = None
        self.outcome: Outcome | None = None
        self.left = (
            False  # output has gone to the client, so this attempt is the only one it may ever see
        )
        self.is_whole = False  # the last event of a stream has been written to the client: it has the whole answer
        self.is_mid_event = False  # what was drained ends in the middle of an event
        self.abandoned = False  # the client has left
        self.is_taken = False  # a worker has it now
        self.abort: Callable[[], None] = _nothing  # cuts the client's connection
        self._max_answer = max_answer
        self._chunks: list[
            tuple[bytes, bool]
        ] = []  # each with whether it ends in the middle of an event
        self._backlog = 0  # bytes of the chunks
        self._parts: list[bytes] = []  # of an event that has not come whole, and is held back
        self._parts_size = 0
        self._in_pieces = False  # the event that comes is too large to be held back
        self._paused = False
        self._drained = 0  # bytes since the worker was last allowed to go on; below 0: it may send some that it has sent
        self._port: WorkerPort | None = None
        self._waiter: asyncio.Future[None] | None = None
        self._alarm: float | None = None
        self._stall: float | None = None

    @property
    def backlog(self) -> int:
        """Bytes that wait here."""
        return self._backlog + self._parts_size

    # The channel's side

    def begin(self, attempt: int, port: WorkerPort) -> None:
        """A worker has taken the job. What an earlier attempt left here, and the client has not seen, is gone."""
        self._forget()
        self.attempt, self._port, self.is_taken = attempt, port, True
        self._wake()

    def requeue(self) -> None:
        """The run was lost before any of its output left: the client still waits, and knows nothing of it."""
        self._forget()
        self._port, self.is_taken = None, False
        self._wake()

    def reattach(self, port: WorkerPort) -> None:
        """The same run goes on over another connection."""
        self._port, self._paused, self._drained = port, False, 0
        self._apply_pressure()

    def put_head(self, head: Head) -> None:
        """The answer begins. Says nothing to the client yet: without a byte of body it may still become another one."""
        self.head = head
        self._wake()

    def put_chunk(self, data: bytes, *, more: bool) -> bool:
        """Take a piece of the answer; `more` means that the next piece continues the same event.

        An event is passed on once it is whole, or, above `EVENT_BYTES`, as its pieces come: then only what its reader
        has not taken is kept. An answer that is not a stream is one event. Returns False if this is more than is kept
        for one client: the run is to be ended.
        """
        if more or self._parts:
            self._parts.append(data)
            self._parts_size += len(data)
            if not more or (
                self._is_stream and (self._in_pieces or self._parts_size > EVENT_BYTES)
            ):
                data, self._parts, self._parts_size = b"".join(self._parts), [], 0
                self._pass_on(data, more=more)
            else:
                self._let_go_on()  # the worker must not wait for what is held back until it sends the rest
        else:
            self._pass_on(data, more=False)
        cost = self.backlog + PIECE_BYTES * (len(self._chunks) + len(self._parts))
        return cost <= (STREAM_CAP if self._is_stream else self._max_answer)

    def end(self, outcome: Outcome) -> None:
        """The job has ended. The first end counts."""
        if self.outcome is None:
            self.outcome = outcome
            self._wake()

    # The relay's side

    def abandon(self) -> None:
        """The client has left."""
        self.abandoned = True
        self._wake()

    async def wait(self, alarm: float | None) -> None:
        """Wait until something has changed, or until about `alarm` (the event loop's time)."""
        self._alarm = alarm
        self._waiter = asyncio.get_running_loop().create_future()
        try:
            await self._waiter
        finally:
            self._waiter = self._alarm = None

    def consume(self, limit: float = DRAIN_BYTES) -> bytes:
        """Take out what has come, whole chunks, up to about `limit` bytes; empty when nothing waits."""
        if self._backlog <= limit:
            taken, self._chunks = self._chunks, []
        else:
            size = count = 0
            while size < limit:
                size += len(self._chunks[count][0])
                count += 1
            taken = self._chunks[:count]
            del self._chunks[:count]
        if taken:
            self.is_mid_event = taken[-1][1]
        data = taken[0][0] if len(taken) == 1 else b"".join([chunk for chunk, _ in taken])
        self._backlog -= len(data)
        self._drained += len(data)
        self._let_go_on()
        return data

    def writing(self, since: float | None) -> None:
        """A write to the client began now and may have to wait for it; None: it is done."""
        self._stall = None if since is None else since + STALL_SECONDS

    # The clock's side

    def tick(self, now: float) -> None:
        """Ring the alarm if it is time; cut a reader that stands still."""
        if self._alarm is not None and now >= self._alarm:
            self._wake()
        if self._stall is not None and now >= self._stall:
            self._stall = None
            self.abort()

    def _forget(self) -> None:
        self.head = None
        self._chunks, self._backlog = [], 0
        self._parts, self._parts_size, self._in_pieces = [], 0, False
        self._paused, self._drained = False, 0

    @property
    def _is_stream(self) -> bool:
        return self.head is not None and self.head.is_stream

    def _pass_on(self, data: bytes, *, more: bool) -> None:
        """Let the relay have this; `more` means that it ends in the middle of an event."""
        self._in_pieces = more
        self._chunks.append((data, more))
        self._backlog += len(data)
        self._apply_pressure()
        self._wake()

    def _let_go_on(self) -> None:
        """Allow the worker to send more once its reader has taken enough. What is held back counts as taken."""
        passed = self._drained + self._parts_size
        is_owed = self._paused or passed >= STREAM_WINDOW // 2
        if is_owed and self._is_stream and self._backlog < RESUME_BELOW and self._port is not None:
            self._paused, self._drained = False, -self._parts_size
            self._port.resume(self.job_id, self.attempt)

    def _apply_pressure(self) -> None:
        if (
            self._backlog > PAUSE_ABOVE
            and not self._paused
            and self._is_stream
            and self._port is not None
        ):
            self._paused = True
            self._port.pause(self.job_id, self.attempt)

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)


def _nothing() -> None:
    pass


class Mailboxes:
    """All mailboxes of this proxy."""

    def __init__(self) -> None:
        self._mailboxes: dict[JobId, Mailbox] = {}
        self._empty = asyncio.Event()
        self._empty.set()

    def __len__(self) -> int:
        return len(self._mailboxes)

    def __iter__(self) -> Iterator[Mailbox]:
        return iter(tuple(self._mailboxes.values()))

    def open(self, job_id: JobId, max_answer: int) -> Mailbox:
        """A new mailbox; the relay that asks for it closes it."""
        mailbox = self._mailboxes[job_id] = Mailbox(job_id, max_answer)
        self._empty.clear()
        return mailbox

    def close(self, job_id: JobId) -> None:
        """The client's call is over."""
        self._mailboxes.pop(job_id, None)
        if not self._mailboxes:
            self._empty.set()

    async def wait_empty(self, seconds: float) -> bool:
        """Wait until no call is open, or so long; whether none is."""
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._empty.wait()
        return not self._mailboxes

    def get(self, job_id: JobId) -> Mailbox | None:
        """The mailbox of a job whose client is here."""
        return self._mailboxes.get(job_id)

    def sink(self, job_id: JobId, attempt: int) -> Mailbox | None:
        """Where the output of this attempt goes; None when nobody wants it any more."""
        mailbox = self._mailboxes.get(job_id)
        return mailbox if mailbox is not None and mailbox.attempt == attempt else None

    def tick(self, now: float) -> None:
        """Look at every mailbox's alarms, a few times a second: cheaper than a timer for each write."""
        for mailbox in self._mailboxes.values():
            mailbox.tick(now)
