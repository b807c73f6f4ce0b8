"""Cut the body of an answer into parts that travel as one: whole events, where it is an event stream.

An engine's app sends a stream in whole events, an HTTP server in packets. A part ends with a blank line. Only an event
that is longer than `EVENT_BYTES` is cut: its parts but the last have `more`, and nothing may come between them.
"""

from collections.abc import Iterable, Iterator
from typing import NamedTuple, Protocol

EVENT_BYTES = 256 * 1024  # an event up to this size is kept until it is whole
BLANK_LINES = (b"\n\n", b"\n\r\n", b"\r\r")  # the second one covers CRLF
OVERLAP = 3  # bytes at the end of a piece that may be the beginning of a blank line
LINE_ENDS = b"\r\n"


class Part(NamedTuple):
    """A piece of an answer's body."""

    data: bytes
    more: bool = False  # the next part continues the event in which this one ends
    begins: bool = False  # it begins with the beginning of an event


class Cutter(Protocol):
    """Makes parts of the pieces of one body."""

    def feed(self, data: bytes) -> Iterable[Part]:
        """Take the next piece. The parts are made as they are asked for, and have to be asked for to the last."""

    def end(self) -> Iterable[Part]:
        """The body is whole: what is left of it."""


class Pieces:
    """A body that is not a stream of events: every piece is a part."""

    def feed(self, data: bytes) -> Iterable[Part]:
        return (Part(data),)

    def end(self) -> Iterable[Part]:
        return ()


class Events:
    """A stream of events. Keeps at most `limit` bytes beside the piece that it is given."""

    def __init__(self, limit: int = EVENT_BYTES) -> None:
        self._limit = limit
        self._kept = b""  # no blank line is in it
        self._is_inside = False  # an event has been passed on in part

    def feed(self, data: bytes) -> Iterable[Part]:
        if (
            not self._kept
            and not self._is_inside
            and len(data) <= self._limit
            and data.endswith(BLANK_LINES)
        ):
            return (Part(data, begins=True),)
        return self._cut(data)

    def end(self) -> Iterable[Part]:
        return (
            (Part(self._kept, begins=not self._is_inside),) if self._kept or self._is_inside else ()
        )

    def _cut(self, data: bytes) -> Iterator[Part]:
        searched = len(self._kept) - OVERLAP
        data = self._kept + data
        start = 0
        while start < len(data):
            stop = start + self._limit
            end = self._end(data, max(start, searched), stop)
            more = not end
            if more and not self._is_inside and len(data) - start <= self._limit:
                break
            if more:  # what may be the beginning of a blank line stays with the rest of it
                end = start + len(data[start:stop].rstrip(LINE_ENDS))
                if end == start:
                    break
            part = Part(data[start:end], more, begins=not self._is_inside)
            start, self._is_inside = end, more
            yield part
        self._kept = data[start:]

    def _end(self, data: bytes, start: int, stop: int) -> int:
        """Where to cut in this range: after the event that has begun, else after as many as there are; 0: nowhere."""
        if self._is_inside:
            found = [
                at + len(line) for line in BLANK_LINES if (at := data.find(line, start, stop)) >= 0
            ]
            return min(found, default=0)
        return max(
            at + len(line) if (at := data.rfind(line, start, stop)) >= 0 else 0
            for line in BLANK_LINES
        )
