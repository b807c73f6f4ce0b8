"""From what worker-vllm puts out to the HTTP answer that its engine gave: both generations of it.

A whole answer is the only element of a list. A stream comes as texts with pieces of the event stream, cut anywhere, or
as objects that were events; it leaves as whole events, but for those that are too large to be kept until they are
whole: they leave as their pieces come. Nothing here waits or knows a job.
"""

import msgspec

from proxy.channel.stock.failures import Failure, find_failure, is_error_object
from proxy.channel.stock.results import NULL, TooManyElementsError, elements
from proxy.service.json_text import IN_THREAD_ABOVE
from proxy.service.mailbox import EVENT_BYTES, EVENT_STREAM, Head

EVENTS = f"{EVENT_STREAM}; charset=utf-8"
JSON = "application/json"
TEXT = "text/plain; charset=utf-8"
DONE = b"data: [DONE]\n\n"
QUOTE = b'"'
DEPTH = 2  # of lists in a piece of a stream; what is deeper is no batch of events
BLANK_LINES = (b"\n\n", b"\n\r\n")  # what ends an event
EDGE_BYTES = 3  # a blank line may be cut into two pieces: so much of an event is kept until the next piece
ERRORS = (b'data: {"error"', b"event: error", b"event: response.failed")  # how an error event begins


class _Asked(msgspec.Struct):
    stream: msgspec.Raw = msgspec.Raw(b"false")


class Answer:
    """The answer of one run, as it comes."""

    def __init__(self, body: bytes) -> None:
        self.is_stream = False
        self.unread = body  # what the client asked, until it has been looked at
        if len(body) <= IN_THREAD_ABOVE:
            self.read(body)
        self.has_begun = False  # events have come
        self.failure: Failure | None = None  # what came was an error
        self.received = 0  # elements
        self.is_mid_event = False  # the events that were given last end in the middle of one
        self.carries_error = False  # one of the events is an error
        self._kept: list[bytes] = []  # elements of a whole answer
        self._kept_bytes = 0
        self._rest = b""  # behind the last whole event
        self._was_parsed = False  # the events came as objects, without their end

    @property
    def backlog(self) -> int:
        """Bytes that are kept here."""
        return len(self._rest) + self._kept_bytes

    def read(self, body: bytes) -> None:
        """Look at what the client asked: before anything else."""
        self.is_stream = bytes(msgspec.json.decode(body, type=_Asked).stream) == b"true"
        self.unread = b""

    def put(self, element: bytes) -> bytes:
        """An element, as JSON. Gives the events that can be passed on; see `is_mid_event`."""
        self.received += 1
        if not self.is_stream:
            self._kept.append(element)
            self._kept_bytes += len(element)
            return b""
        return self._events(element, DEPTH)

    def finish(self, output: bytes) -> bytes:
        """The run is complete, with this result. Gives what is left of the events."""
        if not self.is_stream or self.failure is not None:
            return b""
        late = b"" if self.received else b"".join(self._events(one, DEPTH) for one in elements(output) or [output])
        rest, self._rest = self._rest, b""
        if rest.strip() or self.is_mid_event:
            self._look_for_error(rest)
            late += rest + b"\n\n"
            self.is_mid_event = False
        return late + DONE if self._was_parsed else late

    def has_holes(self, output: bytes) -> bool:
        """Whether pieces of a stream were lost: its result, where it has one, lists them all."""
        try:
            listed = elements(output) if self.is_stream and self.received else None
        except TooManyElementsError:
            return False  # it cannot be said
        return bool(listed) and len(listed or ()) != self.received

    def whole(self, output: bytes) -> tuple[Head, bytes] | None:
        """An answer that is no stream; None when there is nothing in it."""
        found = elements(output)
        found = [output] if found is None else found or self._kept
        if len(found) == 1 and found[0] != NULL:
            return _unwrapped(found[0])
        if found and all(one.startswith(QUOTE) for one in found):
            return Head(200, TEXT), "".join(msgspec.json.decode(one, type=str) for one in found).encode()
        return (Head(200, JSON), output) if len(found) > 1 and elements(output) else None

    def _events(self, element: bytes, depth: int) -> bytes:
        if element.startswith(QUOTE):
            return self._whole_events(msgspec.json.decode(element, type=str).encode())
        listed = elements(element) if depth else None
        if listed is not None:
            return b"".join(self._events(one, depth - 1) for one in listed)
        if not self.has_begun and is_error_object(element):
            self.failure = find_failure(element)
            return b""
        if element == NULL:
            return b""
        self.has_begun = self._was_parsed = True
        event = b"data: %b\n\n" % element
        self._look_for_error(event)
        return event

    def _whole_events(self, data: bytes) -> bytes:
        self.has_begun = True
        begin = max(0, len(self._rest) - EDGE_BYTES)  # what is before that was searched already
        data = self._rest + data
        border, end = max((data.rfind(mark, begin), len(mark)) for mark in BLANK_LINES)
        end = border + end if border >= 0 else 0
        is_mid_event = self.is_mid_event and not end
        if is_mid_event or len(data) - end > EVENT_BYTES:
            end, is_mid_event = max(end, len(data) - EDGE_BYTES), True
        passed, self._rest = data[:end], data[end:]
        self._look_for_error(passed)
        self.is_mid_event = is_mid_event
        return passed

    def _look_for_error(self, events: bytes) -> None:
        """Look at how each event begins: whatever its size, that is enough."""
        starts = not self.is_mid_event
        self.carries_error |= any(
            (starts and events.startswith(error)) or any(mark + error in events for mark in BLANK_LINES)
            for error in ERRORS
        )


def _unwrapped(element: bytes) -> tuple[Head, bytes]:
    if not element.startswith(QUOTE):
        failure = find_failure(element) if is_error_object(element) else None
        if failure is not None and failure.status:
            return Head(failure.status, JSON), failure.body
        return Head(200, JSON), element
    text = msgspec.json.decode(element, type=str).encode()
    try:
        msgspec.json.decode(text, type=msgspec.Raw)
    except (msgspec.MsgspecError, RecursionError):
        return Head(200, TEXT), text
    return Head(200, JSON), text
