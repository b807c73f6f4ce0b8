"""Answer one job with the engine: check its response, cut it into parts, report the outcome.

The bytes of the engine's app are forwarded unchanged. Two checks decide the outcome, without
parsing JSON: a stream that contains an error event has failed, and an incomplete response is lost.
An engine that has died also responds with errors. Those say nothing about the job, so they are not
forwarded.

A part of an event stream contains whole events. An ASGI app in this process sends whole events, an
HTTP server sends arbitrary packets. Here both become parts that end with a blank line, which is the
end of an event. Only an event that is longer than `EVENT_MAX_BYTES` is split: all its parts except
the last have `more` set, and no other data may be sent between them.
"""

import json
import re
from collections.abc import AsyncGenerator, Iterable, Iterator
from contextlib import aclosing
from dataclasses import dataclass
from http import HTTPStatus
from typing import NamedTuple, Protocol

from proxy.wire.fields import RETRY_AFTER
from proxy.wire.frames import FULL_STATUSES, QUOTA_CODE, RETRY_AFTER_SECONDS
from worker_vllm.asgi import CutShortError, Head, Request, call
from worker_vllm.engine.base import Engine

EVENT_STREAM = "text/event-stream"
# An event up to this size is buffered until it is complete.
EVENT_MAX_BYTES = 256 * 1024
# The second one also matches CRLF.
BLANK_LINES = (b"\n\n", b"\n\r\n", b"\r\r")
# Bytes at the end of a piece that may be the beginning of a blank line.
BLANK_LINE_OVERLAP_BYTES = 3
LINE_END_CHARACTERS = b"\r\n"
# Length of the beginning of a split event in which an error event is searched for.
ERROR_SEARCH_BYTES = 64 * 1024


class EngineFailedError(Exception):
    """The engine responded with an error, which has been forwarded to the client.

    `retry_after`: see `End`.
    """

    def __init__(self, code: str, message: str, retry_after: float = 0.0) -> None:
        super().__init__(message)
        self.code = code
        self.retry_after = retry_after


class RunLostError(Exception):
    """The job has no outcome and may be run again, for example on another worker."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


@dataclass(frozen=True, slots=True)
class Route:
    """The pattern of a path that jobs may use, and the beginnings of its error events."""

    path: str
    error_events: tuple[bytes, ...] = ()


_OPENAI = (b'data: {"error"',)
_RESPONSES = (b"event: error", b"event: response.failed")

ROUTES = (
    Route(r"/v1/chat/completions", _OPENAI),
    Route(r"/v1/chat/completions/batch"),
    Route(r"/v1/completions", _OPENAI),
    Route(r"/v1/responses(/[\w-]+(/cancel)?)?", _RESPONSES),
    Route(r"/v1/messages", (b"event: error",)),
    Route(r"/v1/messages/count_tokens"),
    Route(r"/v1/audio/(transcriptions|translations)", _OPENAI),
    Route(r"/v1/embeddings"),
    Route(r"/v2/embed"),
    Route(r"/pooling"),
    Route(r"/classify"),
    Route(r"(/v1)?/score"),
    Route(r"(/v1|/v2)?/rerank"),
    Route(r"/v1/models(/[\w.:@-]+){0,4}"),
    Route(r"/tokenize"),
    Route(r"/detokenize"),
    Route(r"/health"),
    Route(r"/load"),
    Route(r"/version"),
)
"""Jobs cannot reach any other route of an engine's app (admin, development, documentation)."""

_COMPILED = tuple((re.compile(route.path), route) for route in ROUTES)


def route_of(path: str) -> Route | None:
    """Return the route of a path, or None if jobs may not use it."""
    plain = path.partition("?")[0]
    if ".." in plain.split("/"):
        # Some HTTP clients resolve it, which would lead to another route.
        return None
    return next((route for pattern, route in _COMPILED if pattern.fullmatch(plain)), None)


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


def carries_error(part: Part, route: Route) -> bool:
    """Return True if an event in this part of a stream begins like an error event.

    Of a split event only the beginning is searched.
    """
    if not part.begins:
        return False
    data = part.data[:ERROR_SEARCH_BYTES] if part.more else part.data
    return any(data.startswith(event) or b"\n\n" + event in data for event in route.error_events)


async def handle(engine: Engine, request: Request) -> AsyncGenerator[Head | Part, None]:
    """Yield the response: a head, then the parts of its body.

    Raises `EngineFailedError` or `RunLostError` if the job is not completed.
    """
    route = route_of(request.path)
    if route is None:
        head, body = _not_found(request)
        yield head
        yield body
        raise EngineFailedError("http_404", f"the route {request.path} does not exist")
    outcome: EngineFailedError | None = None
    cutter: Cutter = Pieces()
    try:
        async with aclosing(call(engine.app, request, engine.authorization)) as answer:
            async for piece in answer:
                if isinstance(piece, Head):
                    cutter = Events() if piece.content_type.startswith(EVENT_STREAM) else cutter
                    outcome = _by_status(piece, engine)
                    yield piece
                    continue
                if outcome is not None and QUOTA_CODE in piece:
                    outcome.retry_after = 0.0
                for part in cutter.feed(piece):
                    outcome = outcome or _by_event(part, route, engine)
                    yield part
            for part in cutter.end():
                outcome = outcome or _by_event(part, route, engine)
                yield part
    except CutShortError as error:
        _check_alive(engine)
        raise RunLostError("worker_lost", _sentence(error)) from error
    if outcome is not None:
        raise outcome


def _by_status(head: Head, engine: Engine) -> EngineFailedError | None:
    if head.status < HTTPStatus.BAD_REQUEST:
        return None
    _check_alive(engine)
    return EngineFailedError(
        f"http_{head.status}",
        f"the engine responded with status {head.status}",
        _retry_after(head) if head.status in FULL_STATUSES else 0.0,
    )


def _retry_after(head: Head) -> float:
    """Return the seconds of `Retry-After`, or the default if it is missing or is a date."""
    value = dict(head.fields).get(RETRY_AFTER, b"")
    return max(float(value), RETRY_AFTER_SECONDS) if value.isdigit() else RETRY_AFTER_SECONDS


def _by_event(part: Part, route: Route, engine: Engine) -> EngineFailedError | None:
    if not carries_error(part, route):
        return None
    _check_alive(engine)
    return EngineFailedError("error_event", "the stream carries an error event")


def _check_alive(engine: Engine) -> None:
    if engine.dead:
        raise RunLostError("engine_dead", engine.failure)


def _sentence(error: CutShortError) -> str:
    return f"{error}: {error.__cause__!r}" if error.__cause__ is not None else str(error)


def _not_found(request: Request) -> tuple[Head, Part]:
    error = {
        "message": f"Not Found: {request.path}",
        "type": "NotFoundError",
        "param": None,
        "code": 404,
    }
    return Head(404, "application/json"), Part(json.dumps({"error": error}).encode())
