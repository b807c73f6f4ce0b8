"""Server-sent events by the rules of the WHATWG: the only parser of event streams here.

A line ends with LF, CR or CRLF, and a stream may mix them. A blank line ends an event. One space
after the colon of a field is not part of its value. An event without `data` does not exist.

Most streams contain LF only and are searched with one `find`; only a CR makes the search longer.
Nothing here changes bytes: `Events` divides a stream between its events, and the rest reads them.
"""

import re
from collections.abc import Iterable, Iterator
from typing import NamedTuple

import msgspec

# Data is searched with `find`, because `in` takes three times as long: it first tries to convert
# its operand to a number.

# An event up to this size is passed on whole or not at all; a larger one in parts.
EVENT_MAX_BYTES = 256 * 1024
# Two line ends in a row begin with one of these. In the last two, an LF may follow the CR.
BLANK_LINES = (b"\n\n", b"\n\r", b"\r\r")
# The ends of a piece of a stream that are certainly the end of an event.
CERTAIN_ENDS = (b"\n\n", b"\n\r\n", b"\r\r")
# Bytes at the end of a piece that may be the beginning of a blank line.
BLANK_LINE_OVERLAP_BYTES = 3
LINE_END_CHARACTERS = b"\r\n"
# Length of the beginning of a split event that is read.
BEGINNING_BYTES = 64 * 1024
# The same in `LastEvent`, which keeps a copy of it.
KEPT_BEGINNING_BYTES = 1024
# Longer than the line of every final type.
LINE_SEARCH_BYTES = 64
EVENT_STREAM = "text/event-stream"
BYTE_ORDER_MARK = b"\xef\xbb\xbf"

ERROR_TYPES = frozenset({b"error", b"response.failed"})
FINAL_TYPES = ERROR_TYPES | {b"response.completed", b"response.incomplete", b"message_stop"}
DONE = b"[DONE]"
_NO_ERROR = (b"", b"null", b"false", b'""')
# The beginning of a JSON object whose first field is an error; the object may be cut off.
_ERROR_FIRST = re.compile(rb'\s*\{\s*"error"\s*:\s*["{\[t1-9]')


class Event(NamedTuple):
    """One event: the value of its last `event` field, and its `data` lines, joined by LF."""

    type: bytes
    data: bytes

    @property
    def is_error(self) -> bool:
        """True for an error event of any API: by its type, or by an `error` in its JSON object."""
        return self.type in ERROR_TYPES or _has_error(self.data)

    @property
    def is_final(self) -> bool:
        """True for an event after which clients stop reading: the end of an answer, or an error.

        The name of an event decides, if it has one.
        """
        if self.type:
            return self.type in FINAL_TYPES
        return self.data.startswith(DONE) or _has_error(self.data)


class Part(NamedTuple):
    """A piece of a response body."""

    data: bytes
    more: bool = False
    """The next part continues the event in which this one ends."""
    begins: bool = False
    """The first byte of this part is the first byte of an event."""


class Events:
    """Divides a stream into parts with whole events.

    Only an event that is longer than `limit` is split: all its parts but the last have `more` set.
    At most `limit` bytes are buffered, in addition to the piece that is fed.
    """

    def __init__(self, limit: int = EVENT_MAX_BYTES) -> None:
        self._limit = limit
        # The buffered beginning of an event. It contains no blank line.
        self._kept = b""
        # True after a part with `more`, until the last part of that event.
        self._is_inside = False

    @property
    def backlog(self) -> int:
        """The number of buffered bytes."""
        return len(self._kept)

    @property
    def is_inside(self) -> bool:
        """True if the last part ended inside an event."""
        return self._is_inside

    def feed(self, data: bytes) -> Iterable[Part]:
        """Take the next piece and return its parts, lazily: consume all of them."""
        is_between_events = not self._kept and not self._is_inside
        if is_between_events and len(data) <= self._limit and data.endswith(CERTAIN_ENDS):
            return (Part(data, begins=True),)
        return self._cut(data)

    def end(self) -> Iterable[Part]:
        """Return the rest of the stream, after its last piece."""
        if not self._kept and not self._is_inside:
            return ()
        part = Part(self._kept, begins=not self._is_inside)
        self._kept = b""
        self._is_inside = False
        return (part,)

    def _cut(self, data: bytes) -> Iterator[Part]:
        searched = len(self._kept) - BLANK_LINE_OVERLAP_BYTES
        data = self._kept + data
        start = 0
        while start < len(data):
            stop = start + self._limit
            # Inside an event that has been split the first blank line counts, else the last one, so
            # that a part contains as many whole events as possible.
            find = first_end if self._is_inside else last_end
            end = find(data, max(start, searched), stop)
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


class LastEvent:
    """Incremental detector of the final event of one stream, in the bytes that are written.

    `has_come` is True if the last event that was written is a final one (see `Event.is_final`). A
    comment is not an event.
    """

    def __init__(self) -> None:
        self.has_come = False
        # The beginning of the event that is being written.
        self._start = b""
        # The last bytes that were written of it.
        self._overlap = b""

    def feed(self, data: bytes, *, more: bool) -> None:
        """Process bytes that were written; `more` is True if they end in the middle of an event."""
        if more or self._start:
            self._feed_part(data, more=more)
            return
        if _is_one_object(data):
            self.has_come = False
            return
        event = data[last_start(data) :]
        if _is_plain(event):
            self.has_come = False
        elif not self._judge(event):
            # It is a comment.
            self._judge(data)

    def _judge(self, data: bytes) -> bool:
        """Set `has_come` by the last event in `data`; return False if there is none."""
        found = None
        for event in read_events(data):
            found = event
        if found is not None:
            self.has_come = found.is_final
        return found is not None

    def _feed_part(self, data: bytes, *, more: bool) -> None:
        window = self._overlap + data
        boundary = last_end(window) if more else last_start(window)
        if boundary:
            self._start = window[boundary : boundary + KEPT_BEGINNING_BYTES]
        elif len(self._start) < KEPT_BEGINNING_BYTES:
            self._start = (self._start + data)[:KEPT_BEGINNING_BYTES]
        self._overlap = window[-BLANK_LINE_OVERLAP_BYTES:]
        if more:
            self.has_come = False
            return
        self._judge(self._start)
        self._start = b""
        self._overlap = b""


def carries_error(part: Part) -> bool:
    """Return True if a part of a stream contains an error event.

    Of a split event only the beginning is read.
    """
    if not part.begins or not _may_be_error(part.data):
        return False
    data = part.data[:BEGINNING_BYTES] if part.more else part.data
    return any(event.is_error for event in read_events(data))


def read_events(data: bytes) -> Iterator[Event]:
    """Yield the events in `data`, which begins at the first byte of an event.

    What follows the last blank line is read as an event, too.
    """
    kind = b""
    lines: list[bytes] = []
    # Of bytes, this method splits at LF, CR and CRLF only.
    for line in data.removeprefix(BYTE_ORDER_MARK).splitlines():
        if not line:
            if lines:
                yield Event(kind, b"\n".join(lines))
            kind = b""
            lines = []
            continue
        name, _, value = line.partition(b":")
        if name == b"data":
            lines.append(value.removeprefix(b" "))
        elif name == b"event":
            kind = value.removeprefix(b" ")
    if lines:
        yield Event(kind, b"\n".join(lines))


def last_end(data: bytes, start: int = 0, stop: int | None = None) -> int:
    """Return the position after the last blank line in `data[start:stop]`; 0 if there is none.

    An LF and a CR at the end of `data` are not a blank line yet: the CR may belong to a CRLF.
    """
    stop = len(data) if stop is None else min(stop, len(data))
    if data.find(b"\r", start, stop) < 0:
        at = data.rfind(b"\n\n", start, stop)
        return at + 2 if at >= 0 else 0
    while (at := max(data.rfind(mark, start, stop) for mark in BLANK_LINES)) >= 0:
        if end := _after(data, at, stop):
            return end
        stop = at + 1
    return 0


def first_end(data: bytes, start: int = 0, stop: int | None = None) -> int:
    """Return the position after the first blank line in `data[start:stop]`, as `last_end` does."""
    stop = len(data) if stop is None else min(stop, len(data))
    marks = BLANK_LINES if data.find(b"\r", start, stop) >= 0 else BLANK_LINES[:1]
    found = [at for mark in marks if (at := data.find(mark, start, stop)) >= 0]
    return _after(data, min(found), stop) if found else 0


def last_start(data: bytes) -> int:
    """Return the position of the first byte of the last event in `data`."""
    return last_end(data, 0, len(data.rstrip(LINE_END_CHARACTERS)))


def end_start(data: bytes) -> int:
    """Return the position of the last event in `data` if it is the end of an answer without an
    error; otherwise the length of `data`.

    `data` begins at the first byte of an event.
    """
    if not _is_one_object(data):
        start = last_start(data)
        event = data[start:]
        if not _is_plain(event) and any(
            one.is_final and not one.is_error for one in read_events(event)
        ):
            return start
    return len(data)


def _may_be_error(data: bytes) -> bool:
    """Return False if no event in `data` is an error; cheap, for the events of tokens."""
    return data.find(b"error") >= 0 or data.find(b"failed") >= 0


def _is_plain(data: bytes) -> bool:
    """Return True if `data` certainly has an event and no final one; cheap, for tokens.

    Data that begins with `event` must be one event.
    """
    if data.startswith(b"data:"):
        return not (DONE in data or b'"error"' in data or b"event:" in data)
    if not data.startswith(b"event:") or b"\nevent" in data or b"\revent" in data:
        return False
    name, *rest = data[:LINE_SEARCH_BYTES].splitlines()
    # Without data it is not an event.
    has_data = bool(rest) and rest[0].startswith(b"data:")
    return has_data and name[6:].removeprefix(b" ") not in FINAL_TYPES


def _is_one_object(data: bytes) -> bool:
    """Return True if the data is one event with one line, a JSON object without an `error`: the
    usual event of a token, for which this is much cheaper than `_is_plain`.
    """
    return (
        data.find(b"\n") == len(data) - 2
        and data.startswith(b"data: {")
        and data.endswith(b"\n")
        and data.find(b"\r") < 0
        and data.find(b'"error"') < 0
    )


def _after(data: bytes, at: int, stop: int) -> int:
    """Return the end of the blank line whose two line ends begin at `at`; 0 if it is not certain.

    A CR at `stop` is not certain to be a line end of its own after an LF.
    """
    end = at + 2
    if data[end - 1 : end] == b"\n":
        return end
    if data[end : end + 1] == b"\n":
        return end + 1 if end < stop else 0
    return 0 if data[at : at + 1] == b"\n" and end == len(data) else end


class _Fields(msgspec.Struct):
    error: msgspec.Raw = msgspec.Raw(b"null")


_decoder = msgspec.json.Decoder(_Fields)


def _has_error(data: bytes) -> bool:
    """Return True if the data is a JSON object with an `error`, also if the object is cut off."""
    if b'"error"' not in data:
        return False
    try:
        return bytes(_decoder.decode(data).error) not in _NO_ERROR
    except (msgspec.MsgspecError, RecursionError):
        return _ERROR_FIRST.match(data) is not None
