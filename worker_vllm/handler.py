"""Answer one job with the engine: check its response, cut it into parts, report the outcome.

`Answer` serves an OpenAI call, and `answer_input` a job of the queue API, whose `input` it converts
into a call and whose outputs it makes of the response.

The bytes of the engine's app are forwarded unchanged. Two checks decide the outcome, without
parsing JSON: a stream that contains an error event has failed, and an incomplete response is lost.
An engine that has died also responds with errors. Those say nothing about the job, so they are not
forwarded.

A part of an event stream contains whole events. An ASGI app in this process sends whole events, an
HTTP server sends arbitrary packets. Here both become parts that end with a blank line, which is the
end of an event (`wire.sse`). Only an event that is longer than `EVENT_MAX_BYTES` is split: all its
parts except the last have `more` set, and no other data may be sent between them.
"""

import json
import re
from collections.abc import AsyncGenerator, Callable, Iterable, Iterator
from contextlib import aclosing
from dataclasses import dataclass
from http import HTTPStatus
from itertools import chain
from typing import Protocol, Self, TypeAlias

import msgspec
import structlog

from proxy.wire.fields import RETRY_AFTER
from proxy.wire.frames import FULL_STATUSES, OUTPUT_MAX_BYTES, QUOTA_CODE, RETRY_AFTER_SECONDS
from proxy.wire.sse import EVENT_STREAM, Events, Part, carries_error
from worker_vllm.asgi import CutShortError, Exchange, Head, Request
from worker_vllm.engine.base import Engine, EngineError
from worker_vllm.inputs.gauges import Gauges
from worker_vllm.inputs.reading import BadInputError, Call, read_input
from worker_vllm.inputs.rendering import Output, Refusal, Renderer, error_text, renderer
from worker_vllm.settings import OutputFormat


class EngineFailedError(Exception):
    """The engine responded with an error, which has been forwarded to the client.

    `retry_after`: see `End`.
    """

    def __init__(self, code: str, message: str, retry_after: float = 0.0) -> None:
        super().__init__(message)
        self.code = code
        self.retry_after = retry_after


class InputFailedError(Exception):
    """The job has failed and would fail again. The text is for the client.

    `status` and `body` are those of the engine's response; `body` is empty unless the input of the
    job named a route. `retry_after`: see `End`.
    """

    def __init__(
        self,
        code: str,
        message: str,
        status: int = 0,
        body: str = "",
        retry_after: float = 0.0,
    ) -> None:
        super().__init__(message)
        self.code = code
        self.status = status
        self.body = body
        self.retry_after = retry_after


class RunLostError(Exception):
    """The job has no outcome and may be run again, for example on another worker."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


@dataclass(frozen=True, slots=True)
class Route:
    """The pattern of a path that jobs may use."""

    path: str


ROUTES = (
    Route(r"/v1/chat/completions"),
    Route(r"/v1/chat/completions/batch"),
    Route(r"/v1/completions"),
    Route(r"/v1/responses(/[\w-]+(/cancel)?)?"),
    Route(r"/v1/messages"),
    Route(r"/v1/messages/count_tokens"),
    Route(r"/v1/audio/(transcriptions|translations)"),
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


OfferPart: TypeAlias = Callable[[Head | Part], bool]
"""Take a part of a response without waiting; return False to have it yielded instead."""


def _refuse(_: Head | Part) -> bool:
    return False


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


class Answer:
    """The engine's response: an asynchronous iterator of a head, then the parts of the body.

    `offer`: see `asgi.Exchange`; here it is called with each part, after the check.
    The iterator raises `EngineFailedError` or `RunLostError` if the job is not completed. The
    reader must close it.
    """

    def __init__(self, engine: Engine, request: Request, offer: OfferPart | None = None) -> None:
        self._engine = engine
        self._path = request.path
        self._offer = offer or _refuse
        self._outcome: EngineFailedError | None = None
        self._has_begun = False
        self._cutter: Cutter = Pieces()
        # The parts that come next. `_piece` is the piece that they belong to, if some of its parts
        # were taken by `offer`.
        self._parts: Iterator[Head | Part] = iter(())
        self._piece: Head | bytes | None = None
        self._exchange: Exchange | None = None
        if route_of(request.path) is None:
            self._parts = iter(_not_found(request))
            self._outcome = EngineFailedError(
                "http_404", f"the route {request.path} does not exist"
            )
            return
        self._exchange = Exchange(
            engine.app,
            request,
            engine.authorization,
            offer=None if offer is None else self._pass_on,
        )

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Head | Part:
        while True:
            for part in self._parts:
                self._check(part)
                return part
            if self._exchange is None:
                raise self._outcome or StopAsyncIteration
            try:
                piece = await anext(self._exchange)
            except StopAsyncIteration:
                self._exchange = None
                self._parts = iter(self._cutter.end())
            except CutShortError as error:
                raise self._lost(error) from error
            else:
                if piece is not self._piece:
                    self._parts = iter(self._cut(piece))
                self._piece = None

    async def aclose(self) -> None:
        """End the request in the engine; return when the engine has released it."""
        if self._exchange is not None:
            await self._exchange.aclose()

    def _pass_on(self, piece: Head | bytes) -> bool:
        """Offer the parts of a piece; return False, and keep the others, if one is not taken."""
        if self._engine.dead:
            # The checks may raise an exception, which is for the reader.
            return False
        parts = iter(self._cut(piece))
        for part in parts:
            self._check(part)
            if not self._offer(part):
                self._parts = chain((part,), parts)
                self._piece = piece
                return False
        return True

    def _cut(self, piece: Head | bytes) -> Iterable[Head | Part]:
        """Return the parts of a piece. Raises `RunLostError`."""
        if not isinstance(piece, Head):
            if self._outcome is not None and QUOTA_CODE in piece:
                self._outcome.retry_after = 0.0
            return self._cutter.feed(piece)
        if piece.content_type.startswith(EVENT_STREAM):
            self._cutter = Events()
        self._outcome = _by_status(piece, self._engine)
        self._has_begun = True
        return (piece,)

    def _check(self, part: Head | Part) -> None:
        """Note a failure that a part reports. Raises `RunLostError` if the engine is dead."""
        if self._outcome is None and isinstance(part, Part) and carries_error(part):
            _check_alive(self._engine)
            self._outcome = EngineFailedError("error_event", "the stream carries an error event")

    def _lost(self, error: CutShortError) -> RunLostError:
        structlog.get_logger().warning(
            "engine.answer_incomplete", path=self._path, error=repr(error.__cause__)
        )
        _check_alive(self._engine)
        return RunLostError("worker_lost", _sentence(error, has_begun=self._has_begun))


async def answer_input(
    engine: Engine, gauges: Gauges, raw: bytes, model: str, form: OutputFormat
) -> AsyncGenerator[Output, None]:
    """Yield the outputs of a job. `raw` is its input as JSON.

    Raises `InputFailedError` or `RunLostError` if the job is not completed.
    """
    try:
        call = read_input(raw, model, engine.fields)
    except BadInputError as error:
        raise InputFailedError("bad_input", str(error), HTTPStatus.BAD_REQUEST) from None
    if form == "worker-vllm":
        call = Call(call.request)
    if call.native is not None and call.native.is_stream:
        await gauges.begin()
    rendering: Renderer = Refusal()
    event = _WholeEvent()
    try:
        async with aclosing(Answer(engine, call.request)) as answer:
            async for piece in answer:
                if isinstance(piece, Head):
                    rendering = renderer(piece, call.native, gauges)
                    continue
                whole = event.add(piece)
                if whole is None:
                    continue
                for output in await rendering.feed(whole):
                    yield output
        for output in await rendering.end():
            yield output
    except EngineFailedError as error:
        raise _input_failure(error, rendering, is_native=call.native is not None) from None
    except msgspec.MsgspecError as error:
        raise InputFailedError(
            "bad_answer", f"the engine's response has an unexpected format: {error}"
        ) from error


class _WholeEvent:
    """Joins the parts of a split event, up to `OUTPUT_MAX_BYTES`."""

    def __init__(self) -> None:
        self._parts: list[bytes] = []
        self._size = 0

    def add(self, part: Part) -> bytes | None:
        """Return the whole event, or None if more parts follow.

        Raises `InputFailedError` if the event is too large.
        """
        if not part.more and not self._parts:
            return part.data
        self._parts.append(part.data)
        self._size += len(part.data)
        if self._size > OUTPUT_MAX_BYTES:
            raise InputFailedError(
                "answer_too_large",
                f"an event of the response exceeds the limit of {OUTPUT_MAX_BYTES} bytes",
            )
        if part.more:
            return None
        whole = b"".join(self._parts)
        self._parts.clear()
        self._size = 0
        return whole


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


def _check_alive(engine: Engine) -> None:
    if engine.dead:
        raise RunLostError("engine_dead", engine.failure)


def _sentence(error: CutShortError, *, has_begun: bool) -> str:
    """Return the message for the client, which never contains the text of an exception."""
    when = "in the middle of its answer" if has_begun else "before it answered"
    is_closed = isinstance(error.__cause__, EngineError)
    return f"the engine {'closed the connection' if is_closed else 'failed'} {when}"


def _not_found(request: Request) -> tuple[Head, Part]:
    error = {
        "message": f"Not Found: {request.path}",
        "type": "NotFoundError",
        "param": None,
        "code": 404,
    }
    return Head(404, "application/json"), Part(json.dumps({"error": error}).encode())


def _input_failure(
    error: EngineFailedError, rendering: Renderer, *, is_native: bool
) -> InputFailedError:
    if not isinstance(rendering, Refusal):
        return InputFailedError(error.code, rendering.error or str(error))
    body = rendering.text()
    try:
        answer = msgspec.json.decode(body)
    except msgspec.MsgspecError:
        sentence = body
    else:
        sentence = error_text(answer.get("error", answer) if isinstance(answer, dict) else answer)
    return InputFailedError(
        error.code,
        sentence or str(error),
        rendering.status,
        "" if is_native else body,
        error.retry_after,
    )
