"""The frames of a run that its worker keeps, so that it can send them again (see `Acknowledge`)."""

from collections import deque
from collections.abc import Iterator

from proxy.wire.frames import PART_BYTES, Chunk, End, Head, Output


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
            raise OutputGoneError(f"frame {number} of the run was confirmed before")
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
