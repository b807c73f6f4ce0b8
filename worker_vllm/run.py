"""A run is one attempt of one job in this worker, from its first frame to its `End`.

The runs that have just ended are remembered, because the socket accepts an `End` although the
connection may be broken. A worker that listed only the runs that it still has could not be
distinguished from one that never received the job.

A run also keeps the frames that its proxy has not confirmed, so that it can send them again (see
`wire.frames.Acknowledge`).
"""

import asyncio
from collections import OrderedDict, deque
from collections.abc import Callable, Container, Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

from proxy.wire.flow import Outbox, SendFlow
from proxy.wire.frames import (
    PART_BYTES,
    SENT_AGAIN,
    WHOLE_WINDOW,
    Body,
    Chunk,
    End,
    Ending,
    Head,
    Hold,
    Job,
    Output,
)
from proxy.wire.sse import EVENT_STREAM, Part
from worker_vllm import asgi
from worker_vllm.phases import IN_ENGINE, TRANSITIONS, Phase, RunEvent

MESSAGE_CHARACTERS = 2_000
# The message of a run that a bug of the worker has ended.
INTERNAL_ERROR = "the worker failed with an internal error; its log has the details"
# The limits of the proxy for request bodies are lower.
BODY_MAX_BYTES = 64 * 1024 * 1024
# Watermarks of a run's bytes that wait to be sent. Above the first one its output waits, below the
# second one it continues.
OUTBOX_HIGH_BYTES = 128 * 1024
OUTBOX_LOW_BYTES = 32 * 1024
# A proxy of an older version sends no `Resume` within an event: unless it paused the run, more is
# sent after this time.
OLD_PROXY_SECONDS = 1.0


class BadBodyError(ValueError):
    """The parts of a body do not add up to the size that the job announced."""


class OutputGoneError(Exception):
    """The proxy asks for frames that it had confirmed, and that are not kept any longer."""


class ResendBuffer:
    """The frames of one run that its proxy has not confirmed, in their order.

    Attributes:
        size: their payload, in bytes.

    """

    def __init__(self) -> None:
        self._frames: deque[Head | Chunk | Output | End] = deque()
        # The number of the first kept frame.
        self._first = 0
        self.size = 0

    def __iter__(self) -> Iterator[Head | Chunk | Output | End]:
        return iter(self._frames)

    def add(self, frame: Head | Chunk | Output | End) -> None:
        """Keep a frame until it is confirmed."""
        self._frames.append(frame)
        self.size += _payload_bytes(frame)

    def confirm(self, number: int) -> None:
        """Drop the first `number` frames of the run. Raises `OutputGoneError`."""
        if number < self._first:
            raise OutputGoneError(
                "output of the run was lost with a connection, and the worker no longer has it"
            )
        while self._first < number and self._frames:
            self.size -= _payload_bytes(self._frames.popleft())
            self._first += 1


def parts_of(chunk: Chunk) -> Iterator[Chunk]:
    """Split a chunk into parts that are sent as one frame each, so that the proxy can count them.

    The outbox would split a larger one.
    """
    data = memoryview(chunk.data)
    while len(data) > PART_BYTES:
        yield Chunk(chunk.job, chunk.attempt, bytes(data[:PART_BYTES]), more=True)
        data = data[PART_BYTES:]
    yield Chunk(chunk.job, chunk.attempt, bytes(data), more=chunk.more)


def _payload_bytes(frame: Head | Chunk | Output | End) -> int:
    return len(frame.data) if isinstance(frame, Chunk | Output) else 0


@dataclass(slots=True)
class Run:
    """The worker's record of a run.

    `origin` is the outbox of the connection that the job came from.
    """

    job: Job
    origin: Outbox
    phase: Phase = Phase.ARRIVING
    body: bytearray = field(default_factory=bytearray)
    task: "asyncio.Task[None] | None" = None
    verdict: End | None = None
    """The end of the run, once a decision outside the engine has been made."""
    frames_sent: int = 0
    """Frames of this run that were handed to the socket, as `Hello` reports them."""
    flow: SendFlow = field(default_factory=SendFlow)
    is_in_event: bool = False
    """True after a part of an event was sent, while more of it follows."""
    may_continue: asyncio.Event = field(default_factory=asyncio.Event)
    """Set while the run does not wait for its receiver."""
    kept: ResendBuffer | None = None
    """The output that the proxy may lack, if the proxy confirms output."""
    knows_fields: bool = False
    """True if the proxy knows the header fields in a `Head`."""
    is_attached: bool = True
    """False after its connection was lost, until the proxy has said where to continue."""

    def __post_init__(self) -> None:
        self.may_continue.set()

    def advance(self, event: RunEvent) -> bool:
        """Change the phase according to the table.

        Returns False, and changes nothing, if the table has no entry.
        """
        target = TRANSITIONS.get((self.phase, event))
        if target is None:
            return False
        self.phase = target
        return True

    @property
    def unsent(self) -> int:
        """The bytes of its output that wait to be sent."""
        if self.kept is not None and not self.is_attached:
            return self.kept.size
        return self.origin.backlog(self.job.job)

    def frame(self, piece: asgi.Head | Part) -> Head | Chunk:
        """Return the frame of a piece of the engine's response."""
        job = self.job
        if isinstance(piece, Part):
            return Chunk(job.job, job.attempt, piece.data, piece.more)
        fields = piece.fields if self.knows_fields else ()
        return Head(job.job, job.attempt, piece.status, piece.content_type, fields)

    def offer(self, frame: Head | Chunk | Output) -> bool:
        """Send a piece of the answer; return False, and do nothing, if it may not be sent now."""
        is_answering = self.phase is Phase.ANSWERING
        if not (is_answering or self.phase is Phase.RUNNING):
            return False
        if not self.flow.may_send or self.unsent > OUTBOX_HIGH_BYTES:
            return False
        if isinstance(frame, Head):
            self.flow.has_window = frame.content_type.startswith(EVENT_STREAM)
            self.put(frame)
            return True
        if not is_answering:
            self.advance(RunEvent.ANSWER)
        size = len(frame.data)
        self.flow.sent(size)
        self.is_in_event = frame.more
        if size > PART_BYTES and isinstance(frame, Chunk) and self.kept is not None:
            for part in parts_of(frame):
                self.put(part)
        else:
            self.put(frame)
        return True

    async def wait_to_continue(self) -> None:
        """Wait until flow control allows the run to send again, after `offer` returned False."""
        self.may_continue.clear()
        limit = OLD_PROXY_SECONDS if self.is_in_event and self.kept is None else None
        try:
            while not self.may_continue.is_set():
                try:
                    async with asyncio.timeout(limit):
                        await self.may_continue.wait()
                except TimeoutError:
                    if not self.flow.is_paused and self.unsent < OUTBOX_LOW_BYTES:
                        self.resume()
        finally:
            self.may_continue.set()

    def resume(self, acknowledged: int = WHOLE_WINDOW) -> None:
        """Continue a paused run; `acknowledged`: see `wire.frames.Resume`."""
        self.flow.resume(acknowledged)
        self.continue_if_possible()

    def continue_if_possible(self) -> None:
        """Let the run send again if flow control allows it."""
        if self.flow.may_send and self.unsent < OUTBOX_LOW_BYTES:
            self.may_continue.set()

    def put(self, frame: Head | Chunk | Output | End) -> None:
        """Send a frame, or keep it until the run is attached again."""
        if self.kept is not None:
            self.kept.add(frame)
        if self.is_attached:
            self.origin.put_in_lane(frame)

    def detach(self) -> None:
        """Note that the connection is lost. The kept frames are sent again from the one on that
        the proxy names.
        """
        self.is_attached = False
        self.origin.drop(self.job.job, self.job.attempt)
        self.flow.is_paused = False
        self.continue_if_possible()

    def attach(self, confirmed: int) -> None:
        """Drop the first frames, which the proxy has; after a lost connection, send the others.

        Raises `OutputGoneError`; frames that are sent then leave at once.
        """
        was_attached = self.is_attached
        self.is_attached = True
        if self.kept is None:
            return
        try:
            self.kept.confirm(confirmed)
        except OutputGoneError:
            self.kept = None
            raise
        if not was_attached:
            self.flow.restart(self.kept.size)
            for frame in self.kept:
                self.origin.put_in_lane(frame)

    def discard(self) -> None:
        """Drop the output: the proxy needs only the end."""
        self.origin.drop(self.job.job, self.job.attempt)
        self.kept = None
        self.is_attached = True

    def hold(self) -> Hold:
        """Return the entry of this run in a `Hello`."""
        sent = self.frames_sent if self.kept is None else SENT_AGAIN
        return Hold(self.job.job, self.job.attempt, sent)

    @property
    def waits_for_engine(self) -> bool:
        """True if this run waits for the engine, and not for the receiver of its output."""
        return self.phase in IN_ENGINE and self.may_continue.is_set()

    def end(
        self, ending: Ending, code: str = "", message: str = "", retry_after: float = 0.0
    ) -> End:
        """Return the last frame of this run."""
        message = message[:MESSAGE_CHARACTERS]
        return End(self.job.job, self.job.attempt, ending, code, message, retry_after)

    def add(self, part: Body) -> bool:
        """Append a part of the body; return True when it is complete. Raises `BadBodyError`."""
        self.body += part.data
        if len(self.body) > self.job.size or (not part.more and len(self.body) != self.job.size):
            raise BadBodyError(
                f"the worker received {len(self.body)} bytes of a request body of"
                f" {self.job.size} bytes"
            )
        return not part.more

    def request(self) -> asgi.Request:
        """Return the request for the engine, and release the body's buffer."""
        body = bytes(self.body)
        self.body.clear()
        job = self.job
        return asgi.Request(job.method, job.path, job.content_type, body, job.fields)


# A broken connection is detected within 30 s, and closed 2 s later (see `channel.dial`).
ENDED_SECONDS = 40.0
ENDED_MAX_RUNS = 1_000
# The output that is kept of ended runs.
ENDED_MAX_BYTES = 256 * 1024 * 1024


class EndedRun(NamedTuple):
    """A run whose `End` was handed to the socket at this time of the event loop."""

    run: Run
    at: float
    kept_bytes: int


class EndedRuns:
    """The latest ended runs, in the order of their ends.

    A run whose output is kept stays until its proxy has confirmed its end.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._runs: OrderedDict[str, EndedRun] = OrderedDict()
        self._size = 0

    @property
    def has_unconfirmed(self) -> bool:
        """True if a proxy has still to confirm the end of a run."""
        return any(each.run.kept is not None for each in self._runs.values())

    def get(self, job: str) -> Run | None:
        """Return the run of a job that has just ended."""
        each = self._runs.get(job)
        return each.run if each is not None else None

    def add(self, run: Run) -> None:
        """Add a run whose `End` was handed to the socket."""
        job = run.job.job
        self.confirm(job)
        kept_bytes = run.kept.size if run.kept is not None else 0
        self._runs[job] = EndedRun(run, self._clock(), kept_bytes)
        self._size += kept_bytes
        self._evict()

    def confirm(self, job: str) -> None:
        """Forget a run: the proxy knows that it has ended."""
        each = self._runs.pop(job, None)
        if each is not None:
            self._size -= each.kept_bytes

    def recent(self, origin: Outbox, besides: Container[str]) -> list[Run]:
        """Return the runs of a connection that have just ended, except jobs that run again."""
        self._evict()
        return [
            each.run
            for job, each in self._runs.items()
            if each.run.origin is origin and job not in besides
        ]

    def _evict(self) -> None:
        oldest = self._clock() - ENDED_SECONDS
        while self._runs:
            job, first = next(iter(self._runs.items()))
            is_old = first.run.kept is None and first.at < oldest
            fits = len(self._runs) <= ENDED_MAX_RUNS and self._size <= ENDED_MAX_BYTES
            if fits and not is_old:
                return
            self.confirm(job)
