"""Split the body of a response into parts. A part of an event stream contains whole events.

An ASGI app in this process sends whole events, an HTTP server sends arbitrary packets. Here both
become parts that end with a blank line, which is the end of an event. Only an event that is longer
than `EVENT_MAX_BYTES` is split: all its parts except the last have `more` set, and no other data
may be sent between them.
"""

from collections.abc import Iterable, Iterator
from typing import NamedTuple, Protocol

# An event up to this size is buffered until it is complete.
EVENT_MAX_BYTES = 256 * 1024
# The second one also matches CRLF.
BLANK_LINES = (b"\n\n", b"\n\r\n", b"\r\r")
# Bytes at the end of a piece that may be the beginning of a blank line.
BLANK_LINE_OVERLAP_BYTES = 3
LINE_END_CHARACTERS = b"\r\n"


class Part(NamedTuple):
    """A piece of a response body."""

    data: bytes
    more: bool = False
    """The next part continues the event in which this one ends."""
    begins: bool = False
    """The first byte of this part is the first byte of an event."""


class Cutter(Protocol):
    """Converts the pieces of one body into parts."""

    def feed(self, data: bytes) -> Iterable[Part]:
        """Take the next piece and return its parts.

        The parts may be produced lazily, so the caller must consume all of them.
        """

    def end(self) -> Iterable[Part]:
        """Return the rest of the body, after its last piece."""


class Pieces:
    """A body that is not an event stream: every piece is a part."""

    def feed(self, data: bytes) -> Iterable[Part]:
        return (Part(data),)

    def end(self) -> Iterable[Part]:
        return ()


class Events:
    """A stream of events. Buffers at most `limit` bytes in addition to the piece that it is fed."""

    def __init__(self, limit: int = EVENT_MAX_BYTES) -> None:
        self._limit = limit
        # The buffered beginning of an event. It contains no blank line.
        self._kept = b""
        # True after a part with `more`, until the last part of that event.
        self._is_inside = False

    def feed(self, data: bytes) -> Iterable[Part]:
        is_between_events = not self._kept and not self._is_inside
        if is_between_events and len(data) <= self._limit and data.endswith(BLANK_LINES):
            return (Part(data, begins=True),)
        return self._cut(data)

    def end(self) -> Iterable[Part]:
        if not self._kept and not self._is_inside:
            return ()
        return (Part(self._kept, begins=not self._is_inside),)

    def _cut(self, data: bytes) -> Iterator[Part]:
        searched = len(self._kept) - BLANK_LINE_OVERLAP_BYTES
        data = self._kept + data
        start = 0
        while start < len(data):
            stop = start + self._limit
            end = self._end(data, max(start, searched), stop)
            more = not end
            if more and not self._is_inside and len(data) - start <= self._limit:
                break
            if more:
                # The possible beginning of a blank line stays in the buffer.
                end = start + len(data[start:stop].rstrip(LINE_END_CHARACTERS))
                if end == start:
                    break
            part = Part(data[start:end], more, begins=not self._is_inside)
            start = end
            self._is_inside = more
            yield part
        self._kept = data[start:]

    def _end(self, data: bytes, start: int, stop: int) -> int:
        """Return the position after the blank line at which to cut `data[start:stop]`, or 0.

        Inside an event that has been split this is the first blank line, else the last one, so
        that a part contains as many whole events as possible.
        """
        find = data.find if self._is_inside else data.rfind
        ends = []
        for line in BLANK_LINES:
            position = find(line, start, stop)
            if position >= 0:
                ends.append(position + len(line))
        if self._is_inside:
            return min(ends, default=0)
        return max(ends, default=0)
