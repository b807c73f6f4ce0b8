"""The bodies of requests, and the names of what answers behind our proxy."""

from typing import Any

PUMP = "frame pump"
OUR_WORKER = "our worker"
CONTENT = (
    "Explain to a colleague how a queue of jobs survives the restart of its server, in three"
    " sentences, and name one thing that this does not protect against."
)


def body(**fields: Any) -> dict[str, Any]:
    return {"model": "mock", "messages": [{"role": "user", "content": CONTENT}], **fields}


def stream(events: int, gap_us: int) -> dict[str, Any]:
    return body(stream=True, max_tokens=events, seed=gap_us)
