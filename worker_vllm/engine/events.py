"""The responses of the scripted engine, as bytes in the format of vLLM. Pure.

`responses.py` has those of the Responses API.
"""

import json
from dataclasses import dataclass
from typing import Any, Protocol

from worker_vllm.engine.script import Script, ToolCall, error_body

STREAM_END = b"data: [DONE]\n\n"


def error_event(message: str) -> bytes:
    """Return an error event in vLLM's format."""
    return b"data: " + error_body(message, "InternalServerError", 500) + b"\n\n"


class StreamEvents(Protocol):
    """The events of one stream."""

    @property
    def opening(self) -> bytes:
        """The events before the prompt is processed."""

    @property
    def first(self) -> bytes:
        """The events between the processing of the prompt and the first token."""

    def token(self, index: int) -> bytes:
        """Return the event of the token with this index."""

    @property
    def closing(self) -> bytes:
        """The events after the last token."""

    def error(self, message: str) -> bytes:
        """Return the last events of a stream that fails."""


class _ChatEvents:
    """The parts that are equal in all streams of chats and completions."""

    __slots__ = ()

    @property
    def opening(self) -> bytes:
        return b""

    def error(self, message: str) -> bytes:
        return error_event(message) + STREAM_END


@dataclass(frozen=True, slots=True)
class StreamFrame(_ChatEvents):
    """The parts of a stream's events that are the same for all tokens."""

    first: bytes
    """The first event."""
    closing: bytes
    """The events after the last token."""
    before: bytes
    """A token's event up to the number of the token."""
    after: bytes
    """A token's event after the number."""
    after_last: bytes
    """The last token's event after the number."""
    last: int
    """The index of the last token."""
    usage_each: bytes = b""
    """The beginning of the usage in every event, up to the number of tokens; empty without it."""

    def token(self, index: int) -> bytes:
        """Return the event of the token with this index."""
        after = self.after_last if index == self.last else self.after
        event = b"%b%d%b" % (self.before, index, after)
        if not self.usage_each:
            return event
        return b"%b%b%d}}\n\n" % (event[:-3], self.usage_each, index + 1)


@dataclass(frozen=True, slots=True)
class AnswerEvents(_ChatEvents):
    """The events of a stream with the text that the script contains, or with a tool call."""

    script: Script

    @property
    def first(self) -> bytes:
        return _event(self.script, "", None, role=True) if self.script.kind == "chat" else b""

    def token(self, index: int) -> bytes:
        is_last = index == self.script.tokens - 1
        return _event(self.script, self.script.token(index), "stop" if is_last else None)

    @property
    def closing(self) -> bytes:
        call = b""
        if self.script.tool is not None:
            choice = {
                "index": 0,
                "delta": {"tool_calls": [_tool_call(self.script, self.script.tool)]},
            }
            choice |= {"logprobs": None, "finish_reason": "tool_calls"}
            call = _data(_envelope(self.script) | {"choices": [choice]})
        return call + _closing(self.script)


def stream_events(script: Script) -> StreamEvents:
    """Return the events of the stream of a chat or of a completion."""
    if script.answer is not None or script.tool is not None:
        return AnswerEvents(script)
    return stream_frame(script)


def stream_frame(script: Script) -> StreamFrame:
    """Build the constant parts of the stream of a script."""
    # A placeholder for the number of the token.
    mark = "\u0001"
    number = json.dumps(mark)[1:-1].encode()
    before, after = _event(script, f"{script.text.replace(mark, '')} {mark} ", None).split(number)
    _, after_last = _event(script, f"{mark} ", "length").split(number)
    first = _event(script, "", None, role=True) if script.kind == "chat" else b""
    each = b""
    if script.usage_each:
        each = b',"usage":{"prompt_tokens":%d,"completion_tokens":' % script.prompt_tokens
    return StreamFrame(first, _closing(script), before, after, after_last, script.tokens - 1, each)


def answer(script: Script) -> bytes:
    """Return the response body of a request that is not streamed."""
    text = script.full_text()
    content: dict[str, Any] = {"text": text}
    kind = "text_completion"
    if script.kind == "chat":
        calls = [_tool_call(script, script.tool)] if script.tool else []
        content = {"message": {"role": "assistant", "content": text, "tool_calls": calls}}
        kind = "chat.completion"
    finish = "tool_calls" if script.tool else "length" if script.answer is None else "stop"
    choice = {"index": 0, **content, "logprobs": None, "finish_reason": finish}
    head = _envelope(script) | {"object": kind}
    return json.dumps(head | {"choices": [choice], "usage": _usage(script)}).encode()


def _closing(script: Script) -> bytes:
    usage = _envelope(script) | {"choices": [], "usage": _usage(script)}
    return (_data(usage) if script.usage else b"") + STREAM_END


def _tool_call(script: Script, tool: ToolCall) -> dict[str, Any]:
    function = {"name": tool.name, "arguments": tool.arguments}
    return {"id": f"call_{script.id}", "type": "function", "index": 0, "function": function}


def _event(script: Script, text: str, finish: str | None, *, role: bool = False) -> bytes:
    content: dict[str, Any] = {"text": text}
    if script.kind == "chat":
        content = {"delta": {"role": "assistant", "content": text} if role else {"content": text}}
    choice = {"index": 0, **content, "logprobs": None, "finish_reason": finish}
    return _data(_envelope(script) | {"choices": [choice]})


def _envelope(script: Script) -> dict[str, Any]:
    is_chat = script.kind == "chat"
    return {
        "id": f"{'chatcmpl' if is_chat else 'cmpl'}-{script.id}",
        "object": "chat.completion.chunk" if is_chat else "text_completion",
        "created": 0,
        "model": script.model,
    }


def _usage(script: Script) -> dict[str, int]:
    prompt = script.prompt_tokens
    return {
        "prompt_tokens": prompt,
        "total_tokens": prompt + script.tokens,
        "completion_tokens": script.tokens,
    }


def _data(event: dict[str, Any]) -> bytes:
    text = json.dumps(event, separators=(",", ":"), ensure_ascii=False)
    return b"data: " + text.encode() + b"\n\n"
