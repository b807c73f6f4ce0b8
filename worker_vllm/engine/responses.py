"""The responses of the scripted engine to the Responses API, in the format of vLLM. Pure."""

import json
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from worker_vllm.engine.events import StreamEvents
from worker_vllm.engine.script import Script, ToolCall

# The events before the first token: created, in_progress, output_item.added, content_part.added.
_FIRST_TOKEN_NUMBER = 4


def stream_events(script: Script) -> StreamEvents:
    """Return the events of the stream of a response."""
    return ResponseEvents(script)


def answer(script: Script) -> bytes:
    """Return the response body of a request that is not streamed."""
    return json.dumps(_response(script, "completed")).encode()


@dataclass(frozen=True, slots=True)
class ResponseEvents:
    """The events of the stream of a response: a message with one text, or a function call."""

    script: Script

    @property
    def opening(self) -> bytes:
        response = _response(self.script, "in_progress")
        names = ("response.created", "response.in_progress")
        return _numbered(0, [(name, {"response": response}) for name in names])

    @property
    def first(self) -> bytes:
        item = _item(self.script, "in_progress")
        added = [("response.output_item.added", {"output_index": 0, "item": item})]
        if self.script.tool is None:
            part = ("response.content_part.added", _of_part(self.script) | {"part": _part("")})
            added.append(part)
        return _numbered(2, added)

    def token(self, index: int) -> bytes:
        delta = _of_part(self.script) | {"delta": self.script.token(index), "logprobs": []}
        number = _FIRST_TOKEN_NUMBER + index
        return _numbered(number, [("response.output_text.delta", delta)])

    @property
    def closing(self) -> bytes:
        script = self.script
        number = _FIRST_TOKEN_NUMBER + script.tokens
        done = _call_done(script, script.tool) if script.tool else _text_done(script)
        done.append(
            ("response.output_item.done", {"output_index": 0, "item": _item(script, "completed")})
        )
        done.append(("response.completed", {"response": _response(script, "completed")}))
        return _numbered(number, done)

    def error(self, message: str) -> bytes:
        """Return the `error` event. Its number is not exact, because no client checks it."""
        number = _FIRST_TOKEN_NUMBER + self.script.tokens
        fields = {"code": "server_error", "message": message, "param": None}
        return _numbered(number, [("error", fields)])


def _text_done(script: Script) -> list[tuple[str, dict[str, Any]]]:
    of_part = _of_part(script)
    text = script.full_text()
    return [
        ("response.output_text.done", of_part | {"text": text, "logprobs": []}),
        ("response.content_part.done", of_part | {"part": _part(text)}),
    ]


def _call_done(script: Script, tool: ToolCall) -> list[tuple[str, dict[str, Any]]]:
    of_item = {"item_id": _item_id(script), "output_index": 0}
    done = {"arguments": tool.arguments, "name": tool.name}
    return [
        ("response.function_call_arguments.delta", of_item | {"delta": tool.arguments}),
        ("response.function_call_arguments.done", of_item | done),
    ]


def _response(script: Script, status: str) -> dict[str, Any]:
    is_over = status == "completed"
    usage = {
        "input_tokens": script.prompt_tokens,
        "input_tokens_details": {"cached_tokens": 0, "cache_write_tokens": 0},
        "output_tokens": script.tokens,
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": script.prompt_tokens + script.tokens,
    }
    return {
        "id": f"resp_{script.id}",
        "object": "response",
        "created_at": 0,
        "model": script.model,
        "status": status,
        "output": [_item(script, status)] if is_over else [],
        "usage": usage if is_over else None,
        "error": None,
        "incomplete_details": None,
        "instructions": None,
        "metadata": None,
        "parallel_tool_calls": True,
        "temperature": 1.0,
        "tool_choice": "auto",
        "tools": [],
        "top_p": 1.0,
    }


def _item(script: Script, status: str) -> dict[str, Any]:
    is_over = status == "completed"
    item = {"id": _item_id(script), "status": status}
    if script.tool is not None:
        arguments = script.tool.arguments if is_over else ""
        call = {"name": script.tool.name, "call_id": f"call_{script.id}", "arguments": arguments}
        return item | {"type": "function_call"} | call
    content = [_part(script.full_text())] if is_over else []
    return item | {"type": "message", "role": "assistant", "content": content}


def _item_id(script: Script) -> str:
    return f"{'msg' if script.tool is None else 'fc'}_{script.id}"


def _of_part(script: Script) -> dict[str, Any]:
    return {"item_id": _item_id(script), "output_index": 0, "content_index": 0}


def _part(text: str) -> dict[str, Any]:
    return {"type": "output_text", "text": text, "annotations": [], "logprobs": []}


def _numbered(number: int, events: Iterable[tuple[str, dict[str, Any]]]) -> bytes:
    """Return events with these names and fields as bytes, numbered from `number`."""
    rows = []
    for offset, (name, fields) in enumerate(events):
        data = {"type": name, "sequence_number": number + offset} | fields
        rows.append(f"event: {name}\ndata: {json.dumps(data)}\n\n")
    return "".join(rows).encode()
