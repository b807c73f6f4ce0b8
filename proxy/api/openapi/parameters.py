"""The parameters of the operations in the OpenAPI document."""

from proxy.api.idempotency import KEY_MAX_CHARACTERS
from proxy.api.openai.stream_events import HeartbeatForm
from proxy.api.openapi.components import CURSOR_PATTERN, Node, integer, ref, schema
from proxy.api.queue.app import STREAM_WAIT_SECONDS
from proxy.api.queue.listing import PAGE_MAX_ROWS, PAGE_ROWS
from proxy.api.queue.request import (
    DEFAULT_WAIT_MS,
    MAX_TTL_MS,
    MAX_WAIT_MS,
    MIN_REMAINING_TTL_MS,
    MIN_WAIT_MS,
)
from proxy.wire.frames import ID_PATTERN

# The ids of endpoints and jobs.
_WHOLE_ID = f"^{ID_PATTERN}$"
# The id of a model, which may contain slashes.
MODEL_PATTERN = r"^[^\x00-\x1f\x7f]{1,256}$"


def _parameter(place: str, name: str, of: Node, description: str) -> Node:
    found: Node = {"name": name, "in": place, "schema": of, "description": description}
    return found | {"required": True} if place == "path" else found


def _id(name: str, pattern: str, description: str) -> Node:
    return _parameter("path", name, {"type": "string", "pattern": pattern}, description)


def _query(name: str, of: Node, description: str) -> Node:
    return _parameter("query", name, of, description)


PARAMETERS: Node = {
    "endpoint": _id("endpoint", _WHOLE_ID, "The endpoint's id."),
    "job": _id("job", _WHOLE_ID, "The job's id."),
    "model": _id("model", MODEL_PATTERN, "The model's id, which may contain slashes."),
    "wait": _query(
        "wait",
        integer(MIN_WAIT_MS, MAX_WAIT_MS, default=DEFAULT_WAIT_MS),
        "Maximum milliseconds to wait for the job's end.",
    ),
    "poll": _query(
        "wait",
        integer(MIN_WAIT_MS, MAX_WAIT_MS, default=DEFAULT_WAIT_MS),
        "Maximum milliseconds to wait for the job's end. Values out of range are clamped.",
    ),
    "hold": _query(
        "wait",
        integer(MIN_WAIT_MS, DEFAULT_WAIT_MS, default=int(STREAM_WAIT_SECONDS * 1000)),
        "Maximum milliseconds to wait for new output. Values out of range are clamped.",
    ),
    "ttl": _query(
        "ttl",
        integer(MIN_REMAINING_TTL_MS, MAX_TTL_MS),
        "Remaining time to live of the job, in milliseconds.",
    ),
    "after": _query(
        "after",
        {"type": "string", "pattern": CURSOR_PATTERN},
        "Read the output after this cursor, an earlier `next`, without consuming it.",
    ),
    "last-event-id": _parameter(
        "header",
        "Last-Event-ID",
        {"type": "string", "pattern": CURSOR_PATTERN},
        "The `id` of the last event that the client received; the stream continues after it.",
    ),
    "limit": _query(
        "limit", integer(1, PAGE_MAX_ROWS, default=PAGE_ROWS), "Maximum rows of a page."
    ),
    "before": _query("before", {"type": "string"}, "`next` of the previous page."),
    "status": _query("status", schema("Status"), "List only jobs with this status."),
    "idempotency-key": _parameter(
        "header",
        "Idempotency-Key",
        {"type": "string", "pattern": f"^[ -~]{{1,{KEY_MAX_CHARACTERS}}}$"},
        "A repetition of the request with the same key and body returns the result of the first.",
    ),
    "x-request-id": _parameter(
        "header",
        "X-Request-Id",
        {"type": "string", "pattern": "^[A-Za-z0-9._-]{1,128}$"},
        "Returned with the response; an id that does not match the pattern is replaced.",
    ),
    "x-heartbeat": _parameter(
        "header",
        "X-Heartbeat",
        {"type": "string", "enum": list(HeartbeatForm)},
        "The form of the heartbeats; `whitespace` is for calls that are not streamed.",
    ),
}


def parameters(*names: str) -> list[Node]:
    """Refer to parameters by their names."""
    return [ref("parameters", name) for name in names]
