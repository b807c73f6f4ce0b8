"""The outputs of native jobs, in the format of the seed. Pure.

Whole: `{"text": ["…"], "input_tokens": 22, "output_tokens": 16}`. A stream has one element per
step: `text` is the text that the step added, `output_tokens` the number of tokens of the step, and
`input_tokens` is set in the first element only, so that the sum over the elements is correct. For a
model with separate reasoning there is a `reasoning` list in addition to `text`.
"""

from dataclasses import dataclass, field
from typing import Any

import msgspec


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


def whole(body: bytes) -> Step:
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
    # The incomplete event at the end of the stream so far.
    _rest: bytes = b""
    # Input tokens that have not been reported in an element yet.
    _inputs: int = 0
    # All input tokens that the engine has reported.
    _inputs_known: int = 0
    # All output tokens that the engine has reported, per choice.
    _outputs: dict[int, int] = field(default_factory=dict)

    def feed(self, piece: bytes) -> list[Step]:
        """Return the elements of the events that are complete with this piece."""
        *events, self._rest = (self._rest + piece).replace(b"\r\n", b"\n").split(b"\n\n")
        steps = (self._step(event) for event in events)
        return [step for step in steps if step is not None]

    def _step(self, event: bytes) -> Step | None:
        lines = [line for line in event.split(b"\n") if line.startswith(b"data:")]
        data = b"\n".join(line.removeprefix(b"data:").strip() for line in lines)
        if not data or data == b"[DONE]":
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
