"""The responses of the scripted engine, as bytes in the format of vLLM. Pure."""

import json
from dataclasses import dataclass
from typing import Any

from worker_vllm.engine.script import Script, error_body

STREAM_END = b"data: [DONE]\n\n"


def error_event(message: str) -> bytes:
    """Return an error event in vLLM's format."""
    return b"data: " + error_body(message, "InternalServerError", 500) + b"\n\n"


@dataclass(frozen=True, slots=True)
class StreamFrame:
    """The parts of a stream's events that are the same for all tokens."""

    first: bytes
    """The first event."""
    usage: bytes
    """The last event, with the usage."""
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


def stream_frame(script: Script) -> StreamFrame:
    """Build the constant parts of the stream of a script."""
    # A placeholder for the number of the token.
    mark = "\u0001"
    number = json.dumps(mark)[1:-1].encode()
    before, after = _event(script, f"{script.text.replace(mark, '')} {mark} ", None).split(number)
    _, after_last = _event(script, f"{mark} ", "length").split(number)
    usage = _envelope(script) | {"choices": [], "usage": _usage(script)}
    first = _event(script, "", None, role=True) if script.kind == "chat" else b""
    each = b""
    if script.usage_each:
        each = b',"usage":{"prompt_tokens":%d,"completion_tokens":' % script.prompt_tokens
    return StreamFrame(first, _data(usage), before, after, after_last, script.tokens - 1, each)


def answer(script: Script) -> bytes:
    """Return the response body of a request that is not streamed."""
    text = script.full_text()
    content: dict[str, Any] = {"text": text}
    kind = "text_completion"
    if script.kind == "chat":
        content = {"message": {"role": "assistant", "content": text, "tool_calls": []}}
        kind = "chat.completion"
    choice = {"index": 0, **content, "logprobs": None, "finish_reason": "length"}
    head = _envelope(script) | {"object": kind}
    return json.dumps(head | {"choices": [choice], "usage": _usage(script)}).encode()


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
