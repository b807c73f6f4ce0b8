"""Convert the handler's bytes into a job's outputs: one renderer for each kind of response."""

import codecs
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Protocol

import msgspec

from worker_vllm.asgi import Head
from worker_vllm.handler import EVENT_STREAM
from worker_vllm.inputs.gauges import Gauges, metrics
from worker_vllm.inputs.native import Steps, whole
from worker_vllm.inputs.reading import Native

# A longer error response of an engine is truncated.
ERROR_BODY_MAX_BYTES = 64 * 1024


@dataclass(frozen=True, slots=True)
class Output:
    """A piece of a job's output, as JSON.

    If `is_whole` is set, the value is the job's output. Otherwise the output is the list of values.
    """

    value: bytes
    metrics: bytes = b""
    is_whole: bool = False


class Renderer(Protocol):
    """Converts the bytes of one response into outputs."""

    @property
    def error(self) -> str:
        """The message of an error event, or an empty string."""

    async def feed(self, piece: bytes) -> list[Output]: ...

    async def end(self) -> list[Output]: ...


def renderer(head: Head, native: Native | None, gauges: Gauges) -> Renderer:
    """Return the renderer for a response with this head."""
    if head.status >= HTTPStatus.BAD_REQUEST:
        return Refusal(head.status)
    is_stream = head.content_type.startswith(EVENT_STREAM)
    if native is not None:
        return _NativeStream(native.choices, gauges) if is_stream else _NativeWhole()
    return _Texts() if is_stream else _Body()


@dataclass(slots=True)
class Refusal:
    """An error response of the engine: it yields no outputs, but its body is kept."""

    status: int = 0
    error: str = ""
    _body: bytes = b""

    def text(self) -> str:
        return self._body.decode(errors="replace")

    async def feed(self, piece: bytes) -> list[Output]:
        self._body = (self._body + piece)[:ERROR_BODY_MAX_BYTES]
        return []

    async def end(self) -> list[Output]:
        return []


@dataclass(slots=True)
class _Body:
    """The engine's own JSON, unchanged. Any other body becomes a JSON string."""

    error: str = ""
    _parts: list[bytes] = field(default_factory=list)

    async def feed(self, piece: bytes) -> list[Output]:
        self._parts.append(piece)
        return []

    async def end(self) -> list[Output]:
        body = b"".join(self._parts)
        if not body:
            return [Output(b"null")]
        try:
            msgspec.json.decode(body, type=msgspec.Raw)
        except msgspec.MsgspecError:
            body = msgspec.json.encode(body.decode(errors="replace"))
        return [Output(body)]


class _Texts:
    """A stream's events as texts, as in the worker-vllm image. Characters are never split."""

    def __init__(self) -> None:
        self.error = ""
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    async def feed(self, piece: bytes) -> list[Output]:
        text = self._decoder.decode(piece)
        return [Output(msgspec.json.encode(text))] if text else []

    async def end(self) -> list[Output]:
        return []


class _NativeWhole(_Body):
    """A response that was not streamed, in the format of the seed."""

    async def end(self) -> list[Output]:
        return [Output(msgspec.json.encode(whole(b"".join(self._parts)).output()), is_whole=True)]


class _NativeStream:
    def __init__(self, choices: int, gauges: Gauges) -> None:
        self._steps = Steps(choices)
        self._gauges = gauges
        self._index = 0

    @property
    def error(self) -> str:
        return self._steps.error

    async def feed(self, piece: bytes) -> list[Output]:
        steps = self._steps.feed(piece)
        if not steps:
            return []
        load = await self._gauges.load()
        outputs = []
        for step in steps:
            shown = metrics(load, self._index, step.input_tokens, step.output_tokens)
            outputs.append(Output(msgspec.json.encode(step.output()), msgspec.json.encode(shown)))
            self._index += 1
        return outputs

    async def end(self) -> list[Output]:
        return []
