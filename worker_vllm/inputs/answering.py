"""Answer a job's `input` with the engine: the handler's answer, rendered as the job's outputs."""

from collections.abc import AsyncIterator
from contextlib import aclosing
from http import HTTPStatus

import msgspec

from worker_vllm.asgi import Head
from worker_vllm.cutting import Part
from worker_vllm.engine.base import Engine
from worker_vllm.handler import EngineFailedError, handle
from worker_vllm.inputs.gauges import Gauges
from worker_vllm.inputs.native import error_text
from worker_vllm.inputs.reading import Call, read_input
from worker_vllm.inputs.rendering import Output, Refusal, Renderer, renderer
from worker_vllm.inputs.sampling import BadInputError
from worker_vllm.settings import OutputFormat

MOST_BYTES = 64 * 1024 * 1024  # of one event; the proxy takes no larger output of a job


class InputFailedError(Exception):
    """The job has failed and would fail again; the sentence is for the client."""

    def __init__(self, code: str, message: str, status: int = 0, body: str = "") -> None:
        super().__init__(message)
        self.code = code
        self.status = status
        self.body = body  # the engine's own answer, where the job's input named its route


async def answer_input(
    engine: Engine, gauges: Gauges, raw: bytes, model: str, form: OutputFormat
) -> AsyncIterator[Output]:
    """The outputs of a job. A normal end is a completed job; else `InputFailedError` or `RunLostError`."""
    try:
        call = read_input(raw, model, engine.fields)
    except BadInputError as error:
        raise InputFailedError("bad_input", str(error), HTTPStatus.BAD_REQUEST) from None
    if form == "worker-vllm":
        call = Call(call.request)
    if call.native is not None and call.native.is_stream:
        await gauges.begin()
    rendering: Renderer = Refusal()
    event = _Event()
    try:
        async with aclosing(handle(engine, call.request)) as answer:  # type: ignore[type-var]
            async for piece in answer:
                if isinstance(piece, Head):
                    rendering = renderer(piece, call.native, gauges)
                    continue
                if (whole := event.add(piece)) is not None:
                    for output in await rendering.feed(whole):
                        yield output
        for output in await rendering.end():
            yield output
    except EngineFailedError as error:
        raise _failed(error, rendering, is_native=call.native is not None) from None
    except msgspec.MsgspecError as error:
        raise InputFailedError(
            "bad_answer", f"the engine's answer is not what was asked for: {error}"
        ) from error


class _Event:
    """An event that comes in parts: in a job's output it is whole again, within the bound of such an output."""

    def __init__(self) -> None:
        self._parts: list[bytes] = []
        self._size = 0

    def add(self, part: Part) -> bytes | None:
        """The bytes that are whole with this part; None while more is to come."""
        if not part.more and not self._parts:
            return part.data
        self._parts.append(part.data)
        self._size += len(part.data)
        if self._size > MOST_BYTES:
            raise InputFailedError(
                "answer_too_large", f"An event of the answer has more than {MOST_BYTES} bytes."
            )
        if part.more:
            return None
        whole = b"".join(self._parts)
        self._parts.clear()
        self._size = 0
        return whole


def _failed(error: EngineFailedError, rendering: Renderer, *, is_native: bool) -> InputFailedError:
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
        error.code, sentence or str(error), rendering.status, "" if is_native else body
    )
