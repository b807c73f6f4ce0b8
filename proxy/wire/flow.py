"""Flow control of a worker's connection: the output of each run, and the queue of unsent frames.

**A run's output.** The receiver (the proxy) counts the bytes that wait for their reader. Above the
high watermark it asks the sender to pause; below the low watermark it asks it to resume. A pause
can arrive late, so the sender (the worker) also keeps a window: at most `STREAM_WINDOW` bytes that
the receiver has not acknowledged. The receiver therefore sends `Resume` after each half window that
its reader has taken, even if it never paused the sender. See docs/flow-control.md.

**The outbox.** All frames that are added during one turn of the event loop are sent in one message.
Control frames are sent first. Each job has its own FIFO lane; lanes take turns in round-robin
order, one part at a time, so that a large body of one job does not delay other jobs.

The classes only count and order. Their owner sends the frames.
"""

from collections import OrderedDict, deque
from dataclasses import dataclass, field

import msgspec

from proxy.wire.frames import (
    MESSAGE_BYTES,
    PART_BYTES,
    STREAM_WINDOW,
    WHOLE_WINDOW,
    Body,
    Chunk,
    End,
    Frame,
    Head,
    Job,
    JobFrame,
    Output,
    encode,
)

HIGH_WATERMARK_BYTES = 128 * 1024
LOW_WATERMARK_BYTES = 32 * 1024
# The sender gets a new window after as many bytes.
HALF_WINDOW_BYTES = STREAM_WINDOW // 2


@dataclass(slots=True)
class ReceiveFlow:
    """The receiver's side: `backlog` is the number of received bytes that await consumption."""

    low_watermark: int = LOW_WATERMARK_BYTES
    backlog: int = 0
    taken: int = 0
    """Bytes taken since the last `Resume`; negative while bytes that were acknowledged early are
    outstanding.
    """
    is_paused: bool = False

    def received(self, size: int) -> bool:
        """Count bytes that have arrived; return True, once, when the sender has to be paused."""
        self.backlog += size
        return self.backlog > HIGH_WATERMARK_BYTES and self.should_pause()

    def should_pause(self) -> bool:
        """Return True, once, when the sender has to be paused."""
        if self.is_paused or self.backlog <= HIGH_WATERMARK_BYTES:
            return False
        self.is_paused = True
        return True

    def consumed(self, size: int, held: int = 0) -> bool:
        """Count bytes that have been taken out of the backlog; return True if the sender may have
        to be resumed. `held`: as in `resume`.
        """
        self.backlog -= size
        self.taken += size
        return self.is_paused or self.taken + held >= HALF_WINDOW_BYTES

    def passed(self, size: int) -> bool:
        """Count bytes that were taken when they arrived; return True if `resume` may be due."""
        self.taken += size
        return self.taken >= HALF_WINDOW_BYTES

    def resume(self, held: int = 0) -> int | None:
        """Return the bytes to acknowledge, once, when the sender may continue; else None.

        `held`: received bytes outside the backlog that cannot be taken before the sender has sent
        more, such as the parts of an incomplete event. They count as taken, or sender and receiver
        would wait for each other.
        """
        is_due = self.is_paused or self.taken + held >= HALF_WINDOW_BYTES
        if not is_due or self.backlog >= self.low_watermark:
            return None
        self.is_paused = False
        acknowledged = max(0, self.taken + held)
        self.taken -= acknowledged
        return acknowledged

    def restart(self) -> None:
        """Forget what the sender was asked for: its connection was replaced."""
        self.is_paused = False
        self.taken = 0


@dataclass(slots=True)
class SendFlow:
    """The sender's side: whether more output may be sent now."""

    has_window: bool = False
    """True if the window applies: for streams and the outputs of jobs, not for whole answers."""
    unacknowledged: int = 0
    """Bytes sent that the receiver has not acknowledged."""
    is_paused: bool = False

    @property
    def may_send(self) -> bool:
        """Return True if the sender is neither paused nor at the end of its window."""
        return not self.is_paused and self.unacknowledged < STREAM_WINDOW

    def sent(self, size: int) -> None:
        """Count bytes that are on their way."""
        if self.has_window:
            self.unacknowledged += size

    def pause(self) -> None:
        """Send nothing until `resume`."""
        self.is_paused = True

    def restart(self, size: int) -> None:
        """Start again over a new connection, on which `size` bytes are sent again."""
        if self.has_window:
            self.unacknowledged = size

    def resume(self, acknowledged: int = WHOLE_WINDOW) -> None:
        """Continue. Without a number of acknowledged bytes, a new window starts."""
        self.is_paused = False
        if acknowledged == WHOLE_WINDOW:
            self.unacknowledged = 0
        else:
            self.unacknowledged = max(0, self.unacknowledged - acknowledged)


PAYLOAD_FRAMES = (Chunk, Body, Output)

# Size of a frame without its payload: tag, job id, attempt.
FRAME_OVERHEAD_BYTES = 64


@dataclass(slots=True)
class Lane:
    """The unsent frames of one job."""

    frames: deque[JobFrame] = field(default_factory=deque)
    # Payload bytes of the first frame that have been sent already.
    offset: int = 0
    # Payload bytes of all frames that have not been sent.
    backlog: int = 0


class Outbox:
    """A queue without I/O: its owner adds frames and writes the messages of `next_message`.

    Attributes:
        size: payload bytes of all lanes that are not yet in a message.

    """

    def __init__(self) -> None:
        self._control: deque[Frame] = deque()
        self._lanes: OrderedDict[str, Lane] = OrderedDict()
        self.size = 0

    def put(self, frame: Frame) -> None:
        """Add a control frame, which is sent before all lanes."""
        self._control.append(frame)

    def put_in_lane(self, *frames: JobFrame) -> None:
        """Add frames of one job after its earlier ones."""
        job = frames[0].job
        lane = self._lanes.get(job)
        if lane is None:
            lane = self._lanes[job] = Lane()
        lane.frames.extend(frames)
        for frame in frames:
            if isinstance(frame, PAYLOAD_FRAMES):
                lane.backlog += len(frame.data)
                self.size += len(frame.data)

    def backlog(self, job: str) -> int:
        """Return the payload bytes of a job that are not yet in a message."""
        lane = self._lanes.get(job)
        return lane.backlog if lane else 0

    def has_unsent(self, job: str) -> bool:
        """Return True if a frame of a job is not yet, or not completely, in a message."""
        return job in self._lanes

    def drop(self, job: str, attempt: int) -> None:
        """Discard the unsent frames of an attempt. Those of the job's other attempts are sent."""
        lane = self._lanes.get(job)
        if lane is None:
            return
        if lane.frames[0].attempt == attempt:
            lane.offset = 0
        lane.frames = deque(frame for frame in lane.frames if frame.attempt != attempt)
        kept = sum(len(frame.data) for frame in lane.frames if isinstance(frame, PAYLOAD_FRAMES))
        self.size -= lane.backlog
        lane.backlog = kept - lane.offset
        self.size += lane.backlog
        if not lane.frames:
            del self._lanes[job]

    def clear_control(self) -> None:
        """Discard the unsent control frames; a new connection begins with its own."""
        self._control.clear()

    def next_message(self) -> tuple[bytes, list[Frame]] | None:
        """Return the next message to write and the frames in it, or None if the queue is empty."""
        if not self._control and not self._lanes:
            return None
        frames: list[Frame] = list(self._control)
        self._control.clear()
        available = MESSAGE_BYTES - FRAME_OVERHEAD_BYTES * len(frames)
        while self._lanes and available > 0:
            job, lane = self._lanes.popitem(last=False)
            available -= self._take_turn(lane, frames, available)
            if lane.frames:
                # Append the lane at the end, so that the other lanes are next.
                self._lanes[job] = lane
        return encode(frames), frames

    def _take_turn(self, lane: Lane, frames: list[Frame], available: int) -> int:
        """Move frames with up to one part of payload into the message; return the bytes used."""
        used = 0
        turn = min(available, PART_BYTES)
        while lane.frames and used < turn:
            frame = lane.frames[0]
            used += FRAME_OVERHEAD_BYTES + _text_bytes(frame)
            if isinstance(frame, PAYLOAD_FRAMES):
                rest = len(frame.data) - lane.offset
                if rest > PART_BYTES:
                    part = frame.data[lane.offset : lane.offset + PART_BYTES]
                    frames.append(msgspec.structs.replace(frame, data=part, more=True))
                    lane.offset += PART_BYTES
                    lane.backlog -= PART_BYTES
                    self.size -= PART_BYTES
                    return used + PART_BYTES
                if lane.offset:
                    frame = msgspec.structs.replace(frame, data=frame.data[lane.offset :])
                lane.offset = 0
                lane.backlog -= rest
                self.size -= rest
                used += rest
            frames.append(frame)
            lane.frames.popleft()
        return used


def _text_bytes(frame: JobFrame) -> int:
    """Return the bytes of a frame that are neither its payload nor of a fixed size."""
    match frame:
        case Chunk() | Body() | Job(fields=()) | Head(fields=()):
            return 0
        case Job(fields=fields) | Head(fields=fields):
            return sum(len(name) + len(value) for name, value in fields)
        case Output(metrics=metrics):
            return len(metrics)
        case End(message=message):
            return len(message.encode())
        case _:
            return 0
