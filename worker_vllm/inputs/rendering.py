"""The handler's bytes as a job's outputs: one renderer for each kind of answer."""

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

ERROR_BYTES = 64 * 1024  # of an engine's error; what is longer is cut


@dataclass(frozen=True, slots=True)
class Output:
    """One piece of a job's output, as JSON. A whole one is the output itself, else it is a list of such pieces."""

    value: bytes
    metrics: bytes = b""
    is_whole: bool = False


class Renderer(Protocol):
    """Makes outputs of one answer's bytes."""

    @property
    def error(self) -> str:
        """What an error event said."""

    async def feed(self, piece: bytes) -> list[Output]: ...

    async def end(self) -> list[Output]: ...


def renderer(head: Head, native: Native | None, gauges: Gauges) -> Renderer:
    """The one for an answer that begins with this head."""
    if head.status >= HTTPStatus.BAD_REQUEST:
        return Refusal(head.status)
    is_stream = head.content_type.startswith(EVENT_STREAM)
    if native is not None:
        return _NativeStream(native.choices, gauges) if is_stream else _NativeWhole()
    return _Texts() if is_stream else _Body()


@dataclass(slots=True)
class Refusal:
    """An error that the engine answers: no output, but its body is kept."""

    status: int = 0
    error: str = ""
    _body: bytes = b""

    def text(self) -> str:
        return self._body.decode(errors="replace")

    async def feed(self, piece: bytes) -> list[Output]:
        self._body = (self._body + piece)[:ERROR_BYTES]
        return []

    async def end(self) -> list[Output]:
        return []


@dataclass(slots=True)
class _Body:
    """The engine's own JSON, untouched; a text where it is none."""

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
    """A stream's events as texts, as the worker-vllm image gives them; no character is ever split."""

    def __init__(self) -> None:
        self.error = ""
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    async def feed(self, piece: bytes) -> list[Output]:
        text = self._decoder.decode(piece)
        return [Output(msgspec.json.encode(text))] if text else []

    async def end(self) -> list[Output]:
        return []


class _NativeWhole(_Body):
    """The same, in the shape of the seed."""

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
        load, outputs = await self._gauges.load(), []
        for step in steps:
            shown = metrics(load, self._index, step.input_tokens, step.output_tokens)
            outputs.append(Output(msgspec.json.encode(step.output()), msgspec.json.encode(shown)))
            self._index += 1
        return outputs

    async def end(self) -> list[Output]:
        return []
