"""Answer a job's `input` with the engine, and convert the response into the job's outputs."""

from collections.abc import AsyncGenerator
from contextlib import aclosing
from http import HTTPStatus

import msgspec

from proxy.wire.frames import OUTPUT_MAX_BYTES
from proxy.wire.sse import Part
from worker_vllm.asgi import Head
from worker_vllm.engine.base import Engine
from worker_vllm.handler import EngineFailedError, handle
from worker_vllm.inputs.gauges import Gauges
from worker_vllm.inputs.reading import BadInputError, Call, read_input
from worker_vllm.inputs.rendering import Output, Refusal, Renderer, error_text, renderer
from worker_vllm.settings import OutputFormat

# Maximum size of one event. The proxy does not accept larger outputs of a job.


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
        self.retry_after = retry_after
        self.code = code
        self.status = status
        self.body = body


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
    event = _Event()
    try:
        async with aclosing(handle(engine, call.request)) as answer:
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
        raise _failed(error, rendering, is_native=call.native is not None) from None
    except msgspec.MsgspecError as error:
        raise InputFailedError(
            "bad_answer", f"the engine's response has an unexpected format: {error}"
        ) from error


class _Event:
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
        error.code,
        sentence or str(error),
        rendering.status,
        "" if is_native else body,
        error.retry_after,
    )
