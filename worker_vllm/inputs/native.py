"""The answers of native jobs, in the shapes of the seed. Pure.

Whole: `{"text": ["…"], "input_tokens": 22, "output_tokens": 16}`. Streamed, one element a step: `text` is what the step
added, `output_tokens` how many tokens that took, and `input_tokens` stands in the first element only, so that the
elements of a stream add up. A model that reasons apart from its text has a `reasoning` list beside `text`.
"""

from dataclasses import dataclass, field
from typing import Any

import msgspec


class _Said(msgspec.Struct):
    """A chat's message, or what a step added to it. Engines name their reasoning in two ways."""

    content: str | None = None
    reasoning: str | None = None
    reasoning_content: str | None = None


class _Choice(msgspec.Struct):
    index: int = 0
    text: str | None = None
    message: _Said | None = None
    delta: _Said | None = None

    def said(self) -> tuple[str, str]:
        """Text and reasoning."""
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
    """One element of a native answer."""

    text: list[str]
    reasoning: list[str]
    input_tokens: int
    output_tokens: int

    def output(self) -> dict[str, Any]:
        """The element as the client gets it."""
        shown: dict[str, Any] = {"text": self.text}
        if any(self.reasoning):
            shown["reasoning"] = self.reasoning
        return shown | {"input_tokens": self.input_tokens, "output_tokens": self.output_tokens}


def whole(body: bytes) -> Step:
    """The element of an answer that was not streamed; `msgspec.MsgspecError` if it is no answer of the kind."""
    answer = _decoder.decode(body)
    said = [choice.said() for choice in answer.choices]
    usage = answer.usage or _Usage()
    text, reasoning = [text for text, _ in said], [reasoning for _, reasoning in said]
    return Step(text, reasoning, usage.prompt_tokens, usage.completion_tokens or 0)


@dataclass(slots=True)
class Steps:
    """Turns the events of a stream into elements. Tokens that the engine counts late come in a last element."""

    choices: int
    error: str = ""  # what an error event said
    _rest: bytes = b""
    _inputs: int = 0  # input tokens that no element has shown yet
    _inputs_known: int = 0
    _outputs: dict[int, int] = field(default_factory=dict)  # per choice, as the engine counts them

    def feed(self, piece: bytes) -> list[Step]:
        """The elements in a piece of the stream."""
        *events, self._rest = (self._rest + piece).replace(b"\r\n", b"\n").split(b"\n\n")
        steps = (self._step(event) for event in events)
        return [step for step in steps if step is not None]

    def _step(self, event: bytes) -> Step | None:
        data = b"\n".join(
            line[5:].strip() for line in event.split(b"\n") if line.startswith(b"data:")
        )
        if not data or data == b"[DONE]":
            return None
        answer = _decoder.decode(data)
        if answer.error is not None:
            self.error = error_text(answer.error)
            return None
        outputs = self._count(answer)
        text, reasoning = [""] * self.choices, [""] * self.choices
        for choice in answer.choices:
            if 0 <= choice.index < self.choices:
                text[choice.index], reasoning[choice.index] = choice.said()
        is_last = not answer.choices and (outputs or self._inputs)
        if not (any(text) or any(reasoning) or outputs or is_last):
            return None
        inputs, self._inputs = self._inputs, 0
        return Step(text, reasoning, inputs, outputs)

    def _count(self, answer: _Answer) -> int:
        """Output tokens that no element has shown yet. Steps count per choice, the last event over all of them."""
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
    """The sentence in an error object, or in what an engine gives for one."""
    if isinstance(error, dict):
        error = error.get("message") or error.get("error") or error
    return error if isinstance(error, str) else str(error)
