"""Convert the handler's bytes into a job's outputs: one renderer for each kind of response.

The outputs of native jobs have the format of Runpod's guide. A response that was not streamed
becomes `{"text": ["…"], "input_tokens": 22, "output_tokens": 16}`. A stream has one element per
step: `text` is the text that the step added, `output_tokens` the number of tokens of the step, and
`input_tokens` is set in the first element only, so that the sum over the elements is correct. For a
model with separate reasoning there is a `reasoning` list in addition to `text`.
"""

import codecs
import sys
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Any, Protocol

import msgspec

from proxy.wire.sse import DONE, EVENT_STREAM, Events, read_events
from worker_vllm.asgi import Head
from worker_vllm.inputs.gauges import Gauges, metrics
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
    """A response that was not streamed, in the format of Runpod's guide."""

    async def end(self) -> list[Output]:
        step = _whole_step(b"".join(self._parts))
        return [Output(msgspec.json.encode(step.output()), is_whole=True)]


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


class _Message(msgspec.Struct):
    """A chat message or its delta. Engines use either of two names for the reasoning."""

    content: str | None = None
    reasoning: str | None = None
    reasoning_content: str | None = None


class _Choice(msgspec.Struct):
    index: int = 0
    text: str | None = None
    message: _Message | None = None
    delta: _Message | None = None

    def content(self) -> tuple[str, str]:
        """Return the text and the reasoning."""
        part = self.message or self.delta
        if part is None:
            return self.text or "", ""
        return part.content or "", part.reasoning or part.reasoning_content or ""


class _Usage(msgspec.Struct):
    prompt_tokens: int = 0
    completion_tokens: int | None = 0


class _Answer(msgspec.Struct):
    choices: list[_Choice] = []
    usage: _Usage | None = None
    error: Any = None


_decoder = msgspec.json.Decoder(_Answer)


@dataclass(frozen=True, slots=True)
class Step:
    """One element of a native output. The lists have one entry per choice."""

    text: list[str]
    reasoning: list[str]
    input_tokens: int
    output_tokens: int

    def output(self) -> dict[str, Any]:
        """Return the element in the format of the client."""
        shown: dict[str, Any] = {"text": self.text}
        if any(self.reasoning):
            shown["reasoning"] = self.reasoning
        return shown | {"input_tokens": self.input_tokens, "output_tokens": self.output_tokens}


def _whole_step(body: bytes) -> Step:
    """Return the element of a response that was not streamed.

    Raises `msgspec.MsgspecError` if the body has another format.
    """
    answer = _decoder.decode(body)
    contents = [choice.content() for choice in answer.choices]
    usage = answer.usage or _Usage()
    text = [text for text, _ in contents]
    reasoning = [reasoning for _, reasoning in contents]
    return Step(text, reasoning, usage.prompt_tokens, usage.completion_tokens or 0)


@dataclass(slots=True)
class Steps:
    """Converts the events of a stream into elements.

    Tokens that the engine reports after the last text are in a last element without text.
    """

    choices: int
    # The message of an error event.
    error: str = ""
    # Holds the incomplete event at the end of the stream so far.
    _events: Events = field(default_factory=lambda: Events(limit=sys.maxsize))
    # Input tokens that have not been reported in an element yet.
    _inputs: int = 0
    # All input tokens that the engine has reported.
    _inputs_known: int = 0
    # All output tokens that the engine has reported, per choice.
    _outputs: dict[int, int] = field(default_factory=dict)

    def feed(self, piece: bytes) -> list[Step]:
        """Return the elements of the events that are complete with this piece."""
        steps = (
            self._step(event.data)
            for part in self._events.feed(piece)
            for event in read_events(part.data)
        )
        return [step for step in steps if step is not None]

    def _step(self, data: bytes) -> Step | None:
        data = data.strip()
        if not data or data == DONE:
            return None
        answer = _decoder.decode(data)
        if answer.error is not None:
            self.error = error_text(answer.error)
            return None
        outputs = self._count(answer)
        text = [""] * self.choices
        reasoning = [""] * self.choices
        for choice in answer.choices:
            if 0 <= choice.index < self.choices:
                text[choice.index], reasoning[choice.index] = choice.content()
        is_last = not answer.choices and (outputs or self._inputs)
        if not (any(text) or any(reasoning) or outputs or is_last):
            return None
        inputs = self._inputs
        self._inputs = 0
        return Step(text, reasoning, inputs, outputs)

    def _count(self, answer: _Answer) -> int:
        """Return the output tokens that have not been reported in an element yet.

        Events with a choice report the tokens of this choice, the last event those of all choices.
        """
        if answer.usage is None:
            return 0
        outputs = answer.usage.completion_tokens or 0
        shown = sum(self._outputs.values())
        is_total = not answer.choices
        if is_total or not self._inputs_known:
            self._inputs += max(0, answer.usage.prompt_tokens - self._inputs_known)
            self._inputs_known = max(self._inputs_known, answer.usage.prompt_tokens)
        if is_total:
            return max(0, outputs - shown)
        index = answer.choices[0].index
        new = max(0, outputs - self._outputs.get(index, 0))
        self._outputs[index] = self._outputs.get(index, 0) + new
        return new


def error_text(error: Any) -> str:
    """Return the message of an error object, or the text of any other value."""
    if isinstance(error, dict):
        error = error.get("message") or error.get("error") or error
    return error if isinstance(error, str) else str(error)
