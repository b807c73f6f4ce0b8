"""The operations of the queue API, with their parameters and responses."""

from dataclasses import dataclass

from proxy.api.openapi.components import (
    EVENTS,
    NOT_FOUND,
    TOO_MANY_REQUESTS,
    UNAUTHORIZED,
    Node,
    as_json,
    operation_id,
    refusals,
    schema,
    success,
)
from proxy.api.openapi.parameters import parameters
from proxy.api.queue.app import OPERATIONS, JobOperations
from proxy.api.queue.listing import Listing
from proxy.jobs.model import EVENT_STREAM

PREFIX = "/v2/{endpoint}"
KEYS: list[Node] = [{"bearer": []}, {"key": []}]
KEYED = ("idempotency-key",)
_LINKED = ("/status/{job}", "/status-sync/{job}", "/stream/{job}", "/cancel/{job}", "/retry/{job}")


@dataclass(frozen=True, slots=True)
class Shape:
    """The parts in which an operation differs from the others.

    `answer` is the schema of its 200 response, `takes` its query and header parameters, and
    `refuses` its further error statuses. `has_order` means that the body is a `JobRequest`,
    `has_events` that it can respond with server-sent events.
    """

    answer: str
    summary: str | None
    takes: tuple[str, ...] = ()
    has_order: bool = False
    refuses: tuple[int, ...] = ()
    has_events: bool = False


SHAPES: dict[str, Shape] = {
    "run": Shape("JobBrief", JobOperations.run.__doc__, KEYED, has_order=True, refuses=(409, 413)),
    "runsync": Shape(
        "Job",
        JobOperations.runsync.__doc__,
        ("wait", *KEYED),
        has_order=True,
        refuses=(409, 413),
    ),
    "status": Shape("Job", JobOperations.status.__doc__, ("ttl",)),
    "status-sync": Shape("Job", JobOperations.status_sync.__doc__, ("poll",)),
    "stream": Shape(
        "Stream", JobOperations.stream.__doc__, ("hold", "after", "last-event-id"), has_events=True
    ),
    "cancel": Shape("JobBrief", JobOperations.cancel.__doc__),
    "retry": Shape("JobBrief", JobOperations.retry.__doc__, refuses=(409,)),
    "purge-queue": Shape("Purged", JobOperations.purge.__doc__),
    "health": Shape("EndpointHealth", Listing.health.__doc__),
    "requests": Shape("Requests", Listing.requests.__doc__, ("limit", "before", "status")),
}


def queue_paths() -> dict[str, Node]:
    """Return the path items below an endpoint."""
    return {f"{PREFIX}{path}": _path(path, methods) for path, methods in OPERATIONS.items()}


def _path(path: str, methods: tuple[str, ...]) -> Node:
    ids = ["endpoint", *(["job"] if path.endswith("{job}") else [])]
    shape = SHAPES[path.split("/")[1]]
    item: Node = {"parameters": parameters(*ids)}
    return item | {method.lower(): _operation(method, path, shape) for method in methods}


def _operation(method: str, path: str, shape: Shape) -> Node:
    content = as_json(schema(shape.answer))
    if shape.has_events:
        content[EVENT_STREAM] = EVENTS
    answer = success(content, "Success.", limited=True)
    if shape.has_order:
        answer["links"] = _links()
    operation: Node = {
        "operationId": operation_id(method, PREFIX + path),
        "summary": shape.summary,
        "tags": ["queue"],
        "security": KEYS,
        "parameters": parameters(*shape.takes),
        "responses": {"200": answer}
        | refusals("queue", (UNAUTHORIZED, NOT_FOUND, TOO_MANY_REQUESTS, *shape.refuses)),
    }
    if shape.has_order:
        operation["requestBody"] = {"required": True, "content": as_json(schema("JobRequest"))}
    return operation


def _links() -> Node:
    """Return the links from the response of `run` to the operations on the job."""
    of_job = {"path.endpoint": "$request.path.endpoint", "path.job": "$response.body#/id"}
    return {
        operation_id(method, path): {
            "operationId": operation_id(method, PREFIX + path),
            "parameters": of_job,
        }
        for path in _LINKED
        for method in OPERATIONS[path]
    }
