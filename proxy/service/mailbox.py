"""Between a worker's channel and a client's relay: one mailbox for each job whose client is waiting here.

The channel puts in what a worker sends; the relay waits, looks and drains. A mailbox is a state, not a list of events:
any number of changes in one turn of the event loop wake the relay once, and it sends what is there in one write.
"""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass

from proxy.jobs.model import JobId, Outcome
from proxy.service.ports import WorkerPort
from proxy.wire.frames import STREAM_WINDOW

PAUSE_ABOVE = 128 * 1024  # bytes that wait for a slow reader before its worker is paused
RESUME_BELOW = 32 * 1024
STREAM_CAP = 1024 * 1024  # a worker that sends this much in spite of `pause` is cut
PIECE_BYTES = 64  # what a chunk costs beside its bytes: a million of one byte are no megabyte
DRAIN_BYTES = 64 * 1024  # one write to a client: what it has not read then waits here, not in the socket's buffer
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
        self.left = False  # output has gone to the client, so this attempt is the only one it may ever see
        self.abandoned = False  # the client has left
        self.is_taken = False  # a worker has it now
        self.abort: Callable[[], None] = _nothing  # cuts the client's connection
        self._max_answer = max_answer
        self._chunks: list[bytes] = []
        self._backlog = 0  # bytes of the chunks
        self._parts: list[bytes] = []  # of a chunk that has not come whole
        self._parts_size = 0
        self._paused = False
        self._drained = 0  # bytes since the worker was last told to go on
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
        """A piece of the answer; a part waits for the rest, so that a relay never sees half an event.

        False if this is more than a client's answer may be: the run is to be ended.
        """
        if more or self._parts:
            self._parts.append(data)
            self._parts_size += len(data)
        if not more:
            self._chunks.append(b"".join(self._parts) if self._parts else data)
            self._backlog += len(self._chunks[-1])
            self._parts, self._parts_size = [], 0
            self._apply_pressure()
            self._wake()
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

    def drain(self, limit: float = DRAIN_BYTES) -> bytes:
        """Take out what has come, whole chunks, up to about `limit` bytes; empty when nothing waits."""
        if self._backlog <= limit:
            data = b"".join(self._chunks)
            self._chunks.clear()
        else:
            size = count = 0
            while size < limit:
                size += len(self._chunks[count])
                count += 1
            data = b"".join(self._chunks[:count])
            del self._chunks[:count]
        self._backlog -= len(data)
        self._drained += len(data)
        is_owed = self._paused or self._drained >= STREAM_WINDOW // 2
        if is_owed and self._is_stream and self._backlog < RESUME_BELOW and self._port is not None:
            self._paused, self._drained = False, 0
            self._port.resume(self.job_id, self.attempt)
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
        self._parts, self._parts_size = [], 0
        self._paused, self._drained = False, 0

    @property
    def _is_stream(self) -> bool:
        return self.head is not None and self.head.is_stream

    def _apply_pressure(self) -> None:
        if self._backlog > PAUSE_ABOVE and not self._paused and self._is_stream and self._port is not None:
            self._paused = True
            self._port.pause(self.job_id, self.attempt)

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)


def _nothing() -> None:
    pass
