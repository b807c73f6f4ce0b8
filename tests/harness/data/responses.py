"""The events of a streamed response, as vLLM sends them on `/v1/responses`."""

import json
from typing import Any

ID = "resp_engine"
MESSAGE = "msg_1"


def event(kind: str, number: int, **fields: Any) -> bytes:
    """Return one event."""
    data = fields | {"sequence_number": number, "type": kind}
    return f"event: {kind}\ndata: {json.dumps(data)}\n\n".encode()


def response(status: str, output: list[dict[str, Any]]) -> dict[str, Any]:
    """Return a response object."""
    return {
        "id": ID,
        "created_at": 1_700_000_000,
        "incomplete_details": None,
        "instructions": None,
        "metadata": None,
        "model": "small",
        "object": "response",
        "output": output,
        "parallel_tool_calls": True,
        "temperature": 1.0,
        "tool_choice": "auto",
        "tools": [],
        "top_p": 1.0,
        "status": status,
        "usage": None,
    }


def message(text: str, status: str) -> dict[str, Any]:
    """Return an output item."""
    part = {"type": "output_text", "text": text, "annotations": [], "logprobs": None}
    content = [part] if status == "completed" else []
    return {
        "id": MESSAGE,
        "type": "message",
        "role": "assistant",
        "status": status,
        "content": content,
    }


def beginning() -> bytes:
    """Return the events that precede the prefill."""
    running = response("in_progress", [])
    return event("response.created", 0, response=running) + event(
        "response.in_progress", 1, response=running
    )


def tokens(text: str, number: int = 2) -> bytes:
    """Return the events of a text up to its last token, the first of which has this number."""
    place = {"item_id": MESSAGE, "output_index": 0, "content_index": 0}
    part = {"type": "output_text", "text": "", "annotations": [], "logprobs": []}
    return (
        event("response.output_item.added", number, output_index=0, item=message("", "in_progress"))
        + event("response.content_part.added", number + 1, part=part, **place)
        + event("response.output_text.delta", number + 2, delta=text, logprobs=[], **place)
    )


def end(text: str, number: int = 5) -> bytes:
    """Return the last events, the first of which has this number."""
    place = {"item_id": MESSAGE, "output_index": 0, "content_index": 0}
    item = message(text, "completed")
    return (
        event("response.output_text.done", number, text=text, logprobs=[], **place)
        + event("response.output_item.done", number + 1, output_index=0, item=item)
        + event("response.completed", number + 2, response=response("completed", [item]))
    )
