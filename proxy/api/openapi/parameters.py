"""What stands in paths, queries and request headers."""

from proxy.api.jobs.envelope import MAX_TTL, MAX_WAIT, MIN_LIFE, MIN_WAIT, WAIT
from proxy.api.jobs.operations import HOLD_SECONDS
from proxy.api.jobs.overview import MAX_PAGE, PAGE
from proxy.api.openapi.node import Node, ref, schema, whole

NAME = "^[A-Za-z0-9_-]{1,80}$"  # of endpoints and jobs
MODEL = r"^[^\x00-\x1f\x7f]{1,256}$"  # it may have slashes
LARGEST = 2**53  # what every client's numbers can hold


def _parameter(place: str, name: str, of: Node, description: str) -> Node:
    found: Node = {"name": name, "in": place, "schema": of, "description": description}
    return found | {"required": True} if place == "path" else found


def _id(name: str, pattern: str, description: str) -> Node:
    return _parameter("path", name, {"type": "string", "pattern": pattern}, description)


def _query(name: str, of: Node, description: str) -> Node:
    return _parameter("query", name, of, description)


PARAMETERS: Node = {
    "endpoint": _id("endpoint", NAME, "The endpoint's id."),
    "job": _id("job", NAME, "The job's id."),
    "model": _id("model", MODEL, "The model's name, which may have slashes."),
    "wait": _query(
        "wait",
        whole(MIN_WAIT, MAX_WAIT, default=WAIT),
        "Milliseconds until the answer comes at the latest. What is out of bounds is brought into them.",
    ),
    "hold": _query(
        "wait",
        whole(MIN_WAIT, WAIT, default=int(HOLD_SECONDS * 1000)),
        "Milliseconds to wait for something new. What is out of bounds is brought into them.",
    ),
    "ttl": _query("ttl", whole(MIN_LIFE, MAX_TTL), "Milliseconds from now until the job's life ends."),
    "after": _query("after", whole(0, LARGEST), "Read behind so many elements; nothing is drained."),
    "last-event-id": _parameter(
        "header", "Last-Event-ID", {"type": "string", "pattern": "^[0-9]+$"}, "Where a stream of events is taken up."
    ),
    "limit": _query("limit", whole(1, MAX_PAGE, default=PAGE), "Rows of a page."),
    "before": _query("before", {"type": "string"}, "The last page's `next`."),
    "status": _query("status", schema("Status"), "Only jobs that stand there."),
    "x-request-id": _parameter(
        "header",
        "X-Request-Id",
        {"type": "string", "pattern": "^[A-Za-z0-9._-]{1,80}$"},
        "Comes back with the answer; another one is given to what does not look like this.",
    ),
}


def parameters(*names: str) -> list[Node]:
    """These parameters, by their names."""
    return [ref("parameters", name) for name in names]
