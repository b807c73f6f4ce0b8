"""Answer one job with the engine: pass its app's bytes on untouched, and tell how it ended.

Two checks, and no JSON is read for them: a stream that carries an error event has failed, and an answer that breaks off
is lost. An engine that has died answers with errors too; those are not the truth about the job, so they are held back.
"""

import json
import re
from collections.abc import AsyncIterator
from contextlib import aclosing
from dataclasses import dataclass
from http import HTTPStatus

from worker_vllm.asgi import CutShortError, Head, Request, call
from worker_vllm.cutting import Cutter, Events, Part, Pieces
from worker_vllm.engine.base import Engine

EVENT_STREAM = "text/event-stream"
ERROR_BYTES = (
    64 * 1024
)  # of an event that comes in parts: an error event says at its beginning that it is one


class EngineFailedError(Exception):
    """The engine answered with an error, and the client has been given it."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


class RunLostError(Exception):
    """There is no answer: the job may be run again."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


@dataclass(frozen=True, slots=True)
class Route:
    """A path that a job may name, and how an error event of its streams begins."""

    path: str
    error_events: tuple[bytes, ...] = ()


_OPENAI = (b'data: {"error"',)
_RESPONSES = (b"event: error", b"event: response.failed")

ROUTES = (
    Route(r"/v1/chat/completions", _OPENAI),
    Route(r"/v1/completions", _OPENAI),
    Route(r"/v1/responses(/[\w-]+(/cancel)?)?", _RESPONSES),
    Route(r"/v1/messages", (b"event: error",)),
    Route(r"/v1/messages/count_tokens"),
    Route(r"/v1/audio/(transcriptions|translations)", _OPENAI),
    Route(r"/v1/embeddings"),
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
"""Every other route of an engine's app (admin, development, documentation) is out of reach of a job."""

_COMPILED = tuple((re.compile(route.path), route) for route in ROUTES)


def route_of(path: str) -> Route | None:
    """The route that a path names, or None if jobs may not go there."""
    plain = path.partition("?")[0]
    if ".." in plain.split("/"):
        return None  # some HTTP clients resolve it
    return next((route for pattern, route in _COMPILED if pattern.fullmatch(plain)), None)


def carries_error(part: Part, route: Route) -> bool:
    """Whether an event in this part of a stream begins as an error event. Of a cut event only its beginning is read."""
    if not part.begins:
        return False
    data = part.data[:ERROR_BYTES] if part.more else part.data
    return any(data.startswith(event) or b"\n\n" + event in data for event in route.error_events)


async def handle(engine: Engine, request: Request) -> AsyncIterator[Head | Part]:
    """The answer: a head, then its body. Raises `EngineFailedError` or `RunLostError` if the job is not completed."""
    route = route_of(request.path)
    if route is None:
        for given in _not_found(request):
            yield given
        raise EngineFailedError("http_404", f"no such route: {request.path}")
    outcome: EngineFailedError | None = None
    cutter: Cutter = Pieces()
    try:
        async with aclosing(call(engine.app, request, engine.authorization)) as answer:  # type: ignore[type-var]
            async for piece in answer:
                if isinstance(piece, Head):
                    cutter = Events() if piece.content_type.startswith(EVENT_STREAM) else cutter
                    outcome = _by_status(piece, engine)
                    yield piece
                    continue
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
    return EngineFailedError(f"http_{head.status}", f"the engine answered {head.status}")


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
