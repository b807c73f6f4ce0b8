"""What waits to be written to one socket, in the order in which it should leave.

Everything that is put in during one turn of the event loop leaves in one message. Control frames go first. Each job has
a lane of its own, first in first out; lanes take turns, a part at a time, so one job's big body delays no other job.
"""

from collections import OrderedDict, deque
from dataclasses import dataclass, field

import msgspec

from proxy.wire.frames import (
    MESSAGE_BYTES,
    PART_BYTES,
    Body,
    Chunk,
    Frame,
    JobFrame,
    Output,
    encode,
)

PAYLOAD = (Chunk, Body, Output)
FRAME_BYTES = 64  # what a frame costs beside its payload: tag, job id, attempt


@dataclass(slots=True)
class Lane:
    """The frames of one job, how far the first one is sent already, and the payload bytes that wait."""

    frames: deque[JobFrame] = field(default_factory=deque)
    offset: int = 0
    backlog: int = 0


class Outbox:
    """Frames for one socket. The owner puts them in and writes what `next_message` gives; no I/O happens here."""

    def __init__(self) -> None:
        self._control: deque[Frame] = deque()
        self._lanes: OrderedDict[str, Lane] = OrderedDict()
        self.size = 0  # payload bytes of all lanes that are not yet in a message

    def put(self, frame: Frame) -> None:
        """DurableJobs a control frame, ahead of all lanes."""
        self._control.append(frame)

    def put_in_lane(self, frame: JobFrame) -> None:
        """DurableJobs a frame behind the earlier ones of the same job."""
        lane = self._lanes.get(frame.job)
        if lane is None:
            lane = self._lanes[frame.job] = Lane()
        lane.frames.append(frame)
        if isinstance(frame, PAYLOAD):
            lane.backlog += len(frame.data)
            self.size += len(frame.data)

    def backlog(self, job: str) -> int:
        """Payload bytes of a job that are not yet in a message."""
        lane = self._lanes.get(job)
        return lane.backlog if lane else 0

    def drop(self, job: str) -> None:
        """Forget what a job still had to send."""
        lane = self._lanes.pop(job, None)
        if lane is not None:
            self.size -= lane.backlog

    def clear_control(self) -> None:
        """Forget the control frames; a new connection begins with its own."""
        self._control.clear()

    def next_message(self) -> tuple[bytes, list[Frame]] | None:
        """The next message to write and the frames in it, or None when nothing waits."""
        if not self._control and not self._lanes:
            return None
        frames: list[Frame] = list(self._control)
        self._control.clear()
        room = MESSAGE_BYTES - FRAME_BYTES * len(frames)
        while self._lanes and room > 0:
            job, lane = self._lanes.popitem(last=False)
            room -= self._take_turn(lane, frames, room)
            if lane.frames:
                self._lanes[job] = lane  # to the back: the other lanes are next
        return encode(frames), frames

    def _take_turn(self, lane: Lane, frames: list[Frame], room: int) -> int:
        """Move frames of one lane into the message: up to one part of payload. Gives the bytes used."""
        used = 0
        turn = min(room, PART_BYTES)
        while lane.frames and used < turn:
            frame = lane.frames[0]
            used += FRAME_BYTES
            if isinstance(frame, PAYLOAD):
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
