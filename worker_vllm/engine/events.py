"""The scripted engine's answers as bytes: OpenAI stream events and bodies, as vLLM writes them. Pure."""

import json
from dataclasses import dataclass
from typing import Any

from worker_vllm.engine.script import Script, error_body

STREAM_END = b"data: [DONE]\n\n"


def error_event(message: str) -> bytes:
    """An error inside a stream, as vLLM sends it."""
    return b"data: " + error_body(message, "InternalServerError", 500) + b"\n\n"


@dataclass(frozen=True, slots=True)
class StreamFrame:
    """The parts of a stream's events that are the same for all tokens, made once."""

    first: bytes
    usage: bytes
    before: bytes  # of a token's event, up to its number
    after: bytes
    after_last: bytes
    last: int
    usage_each: bytes = (
        b""  # where every token tells the usage so far: its beginning, up to the number of tokens
    )

    def token(self, index: int) -> bytes:
        """The event of one token."""
        event = b"%b%d%b" % (
            self.before,
            index,
            self.after_last if index == self.last else self.after,
        )
        return (
            b"%b%b%d}}\n\n" % (event[:-3], self.usage_each, index + 1) if self.usage_each else event
        )


def stream_frame(script: Script) -> StreamFrame:
    """Make the events of a script's stream."""
    mark = "\u0001"  # stands where the number goes
    number = json.dumps(mark)[1:-1].encode()
    before, after = _event(script, f"{script.text.replace(mark, '')} {mark} ", None).split(number)
    _, after_last = _event(script, f"{mark} ", "length").split(number)
    usage = _envelope(script) | {"choices": [], "usage": _usage(script)}
    first = _event(script, "", None, role=True) if script.kind == "chat" else b""
    each = (
        b',"usage":{"prompt_tokens":%d,"completion_tokens":' % script.prompt_tokens
        if script.usage_each
        else b""
    )
    return StreamFrame(first, _data(usage), before, after, after_last, script.tokens - 1, each)


def answer(script: Script) -> bytes:
    """The whole answer of a call that is no stream."""
    text = script.full_text()
    said: dict[str, Any] = {"text": text}
    if script.kind == "chat":
        said = {"message": {"role": "assistant", "content": text, "tool_calls": []}}
    choice = {"index": 0, **said, "logprobs": None, "finish_reason": "length"}
    head = _envelope(script) | {
        "object": "chat.completion" if script.kind == "chat" else "text_completion"
    }
    return json.dumps(head | {"choices": [choice], "usage": _usage(script)}).encode()


def _event(script: Script, text: str, finish: str | None, *, role: bool = False) -> bytes:
    said: dict[str, Any] = {"text": text}
    if script.kind == "chat":
        said = {"delta": {"role": "assistant", "content": text} if role else {"content": text}}
    choice = {"index": 0, **said, "logprobs": None, "finish_reason": finish}
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
    asked, made = script.prompt_tokens, script.tokens
    return {"prompt_tokens": asked, "total_tokens": asked + made, "completion_tokens": made}


def _data(event: dict[str, Any]) -> bytes:
    return (
        b"data: " + json.dumps(event, separators=(",", ":"), ensure_ascii=False).encode() + b"\n\n"
    )
