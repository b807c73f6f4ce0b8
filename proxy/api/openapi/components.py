"""The shapes of what goes in and comes out. An object of ours is closed; what is the engine's is open.

The words that an OpenAPI document is put together from.

What an operation may answer besides its own success: the table of errors, status by status, in three voices.

What stands in paths, queries and request headers.
"""

import re
from collections.abc import Iterable
from typing import TypeAlias

from proxy.api.errors import ERRORS
from proxy.api.openai.dialects import ANTHROPIC_TYPES
from proxy.api.queue.app import STREAM_WAIT_SECONDS
from proxy.api.queue.listing import PAGE_MAX_ROWS, PAGE_ROWS
from proxy.api.queue.request import (
    DEFAULT_WAIT_MS,
    MAX_EXECUTION_TIMEOUT_MS,
    MAX_TTL_MS,
    MAX_WAIT_MS,
    MIN_EXECUTION_TIMEOUT_MS,
    MIN_REMAINING_TTL_MS,
    MIN_TTL_MS,
    MIN_WAIT_MS,
    WEBHOOK_URL_MAX_CHARACTERS,
)
from proxy.jobs.lifecycle import Status

Node: TypeAlias = dict[str, object]
"""An object of the document."""

_NO_LETTER = re.compile(r"[^A-Za-z0-9]+")


def ref(kind: str, name: str) -> Node:
    """A component by its name: `kind` is `schemas`, `responses`, `parameters` or `headers`."""
    return {"$ref": f"#/components/{kind}/{name}"}


def schema(name: str) -> Node:
    """A schema by its name."""
    return ref("schemas", name)


def as_json(of: Node) -> Node:
    """A body that is JSON."""
    return {"application/json": {"schema": of}}


def record(required: dict[str, Node], optional: dict[str, Node] | None = None) -> Node:
    """An object of ours: these fields and no others."""
    properties = required | (optional or {})
    return {
        "type": "object",
        "required": [*required],
        "properties": properties,
        "additionalProperties": False,
    }


def integer(least: int, most: int | None = None, **more: object) -> Node:
    """A whole number within bounds."""
    bounds: Node = {"minimum": least} if most is None else {"minimum": least, "maximum": most}
    return {"type": "integer", **bounds, **more}


def operation_id(method: str, path: str) -> str:
    """The name of an operation, for generated clients and for links."""
    return _NO_LETTER.sub("_", f"{method.lower()}{path}").strip("_")


EDGE_STATUSES = (
    400,
    403,
    408,
    415,
    431,
    503,
)  # said of any request, before anybody looks where it goes
BAD_REQUEST, UNAUTHORIZED, NOT_FOUND, TOO_MANY_REQUESTS = 400, 401, 404, 429
RETRY_AFTER_MAX_SECONDS = 60  # seconds; the OpenAI SDK for Python does not retry at all above it

STATUS_DESCRIPTIONS = {
    400: "The request is not as it should be; the sentence names what.",
    401: "Wrong or missing key.",
    403: "The name in `Host` is not one of the proxy's, or no key is set and a web page of another origin asks.",
    404: "There is no such endpoint, job or model, or none that this key may see.",
    408: "The request came too slowly.",
    409: "The job's status does not allow it.",
    413: "The body is too large.",
    415: "Another `Content-Type` than is taken here, or a `Content-Encoding`.",
    429: "More than a key may ask, or than may wait.",
    431: "The head of the request is too large.",
    500: "The engine failed.",
    502: "The worker was lost, or its answer was too large.",
    503: "No worker, no room, or no more requests for now.",
    504: "The job took too long.",
}

_TEXT: Node = {"type": "string"}
ERROR_SCHEMAS: dict[str, Node] = {
    "queue": schema("QueueError"),
    "openai": schema("OpenAiError"),
    "anthropic": {"anyOf": [schema("AnthropicError"), schema("OpenAiError")]},
}

_RATE = tuple(f"x-ratelimit-{what}-requests" for what in ("limit", "remaining", "reset"))
ENGINE_HEADERS = ("x-request-id", "x-job-id", "openai-processing-ms", "openai-version")


def _header(description: str, of: Node) -> Node:
    return {"description": description, "schema": of}


HEADERS: Node = {
    "Retry-After": _header("Seconds.", integer(1, RETRY_AFTER_MAX_SECONDS)),
    "x-should-retry": _header(
        "Whether the OpenAI SDKs post it again.", {"type": "string", "enum": ["true", "false"]}
    ),
    "WWW-Authenticate": _header("How to send a key.", {"const": "Bearer"}),
    "x-ratelimit-limit-requests": _header("Requests in ten seconds.", integer(0)),
    "x-ratelimit-remaining-requests": _header("What is left of them.", integer(0)),
    "x-ratelimit-reset-requests": _header(
        "Until they begin anew.", {"type": "string", "pattern": "^[0-9]+s$"}
    ),
    "x-request-id": _header("The client's own, or one that was made for it.", _TEXT),
    "x-job-id": _header("The call's job, where there is one.", _TEXT),
    "openai-processing-ms": _header("Milliseconds until the head went out.", integer(0)),
    "openai-version": _header("The version of the API.", _TEXT),
}


def headers(names: Iterable[str]) -> Node:
    """These headers, by their names."""
    return {name: ref("headers", name) for name in names}


def success(
    content: Node | None, description: str, *, names: Iterable[str] = (), limited: bool = False
) -> Node:
    """A 200. `limited`: its headers say what is left of the limit."""
    answer: Node = {"description": description}
    found = headers([*names, *(_RATE if limited else ())])
    return (
        answer | ({"headers": found} if found else {}) | ({"content": content} if content else {})
    )


def refusals(voice: str, statuses: Iterable[int]) -> Node:
    """The errors with these statuses, as one of the APIs tells them."""
    return {
        str(status): ref("responses", f"{voice}-{status}")
        for status in sorted({*EDGE_STATUSES, *statuses})
    }


def responses() -> Node:
    """Every error in every voice, to be referred to."""
    return {
        f"{voice}-{status}": _response(status, voice)
        for voice in ERROR_SCHEMAS
        for status in STATUS_DESCRIPTIONS
    }


def _response(status: int, voice: str) -> Node:
    rows = {code: row for code, row in ERRORS.items() if row.status == status}
    names = [] if voice == "queue" else [*ENGINE_HEADERS]
    if status == UNAUTHORIZED:
        names.append("WWW-Authenticate")
    if status == TOO_MANY_REQUESTS or any(row.retry_after for row in rows.values()):
        names.append("Retry-After")
    if any(row.should_retry is not None for row in rows.values()):
        names.append("x-should-retry")
    codes = ", ".join(f"`{code}`" for code in rows)
    description = STATUS_DESCRIPTIONS[status] + (f" Codes: {codes}." if codes else "")
    return success(
        as_json(ERROR_SCHEMAS[voice]), description, names=names, limited=status == TOO_MANY_REQUESTS
    )


ID_PATTERN = "^[A-Za-z0-9_-]{1,80}$"  # of endpoints and jobs
MODEL_PATTERN = r"^[^\x00-\x1f\x7f]{1,256}$"  # it may have slashes
MAX_SAFE_INTEGER = 2**53  # what every client's numbers can hold


def _parameter(place: str, name: str, of: Node, description: str) -> Node:
    found: Node = {"name": name, "in": place, "schema": of, "description": description}
    return found | {"required": True} if place == "path" else found


def _id(name: str, pattern: str, description: str) -> Node:
    return _parameter("path", name, {"type": "string", "pattern": pattern}, description)


def _query(name: str, of: Node, description: str) -> Node:
    return _parameter("query", name, of, description)


PARAMETERS: Node = {
    "endpoint": _id("endpoint", ID_PATTERN, "The endpoint's id."),
    "job": _id("job", ID_PATTERN, "The job's id."),
    "model": _id("model", MODEL_PATTERN, "The model's name, which may have slashes."),
    "wait": _query(
        "wait",
        integer(MIN_WAIT_MS, MAX_WAIT_MS, default=DEFAULT_WAIT_MS),
        "Milliseconds until the answer comes at the latest. What is out of bounds is brought into them.",
    ),
    "hold": _query(
        "wait",
        integer(MIN_WAIT_MS, DEFAULT_WAIT_MS, default=int(STREAM_WAIT_SECONDS * 1000)),
        "Milliseconds to wait for something new. What is out of bounds is brought into them.",
    ),
    "ttl": _query(
        "ttl",
        integer(MIN_REMAINING_TTL_MS, MAX_TTL_MS),
        "Milliseconds from now until the job's life ends.",
    ),
    "after": _query(
        "after", integer(0, MAX_SAFE_INTEGER), "Read behind so many elements; nothing is drained."
    ),
    "last-event-id": _parameter(
        "header",
        "Last-Event-ID",
        {"type": "string", "pattern": "^[0-9]+$"},
        "Where a stream of events is taken up.",
    ),
    "limit": _query("limit", integer(1, PAGE_MAX_ROWS, default=PAGE_ROWS), "Rows of a page."),
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


TEXT: Node = {"type": "string"}
COUNT: Node = {"type": "integer", "minimum": 0}
ANYTHING: Node = {}
OBJECT: Node = {"type": "object"}

_POLICY: Node = {
    "type": ["object", "null"],
    "properties": {
        "executionTimeout": integer(
            MIN_EXECUTION_TIMEOUT_MS,
            MAX_EXECUTION_TIMEOUT_MS,
            description="Milliseconds that one run may take.",
        )
        | {"type": ["integer", "null"]},
        "ttl": integer(
            MIN_TTL_MS, MAX_TTL_MS, description="Milliseconds from now until the job's life ends."
        )
        | {"type": ["integer", "null"]},
        "lowPriority": {"type": ["boolean", "null"], "description": "Taken after all others."},
    },
}
_ORDER: Node = {
    "type": "object",
    "required": ["input"],
    "properties": {
        "input": {
            "type": ["object", "array", "string", "number", "boolean"],
            "description": "What the job is to work on: any JSON but null.",
        },
        "webhook": {
            "type": ["string", "null"],
            "format": "uri",
            "maxLength": WEBHOOK_URL_MAX_CHARACTERS,
            "description": "Is told of the job's end.",
        },
        "policy": _POLICY,
        "s3Config": {
            "type": ["object", "null"],
            "description": "For a stock worker only; kept sealed, never shown.",
        },
    },
    "examples": [{"input": {"prompt": "Hello", "sampling_params": {"max_tokens": 3}}}],
}
_STATUS: Node = {"type": "string", "enum": [*Status]}
_WORKERS = ("idle", "initializing", "ready", "running", "throttled", "unhealthy")
_JOBS = ("completed", "failed", "inProgress", "inQueue", "retried")
_SERVER_WORKERS = ("ready", "running", "initializing")

SCHEMAS: Node = {
    "JobRequest": _ORDER,
    "Status": _STATUS,
    "JobBrief": record({"id": TEXT, "status": schema("Status")}),
    "Job": record(
        {"id": TEXT, "retries": COUNT, "status": schema("Status")},
        {
            "delayTime": COUNT | {"description": "Milliseconds in the queue."},
            "executionTime": COUNT | {"description": "Milliseconds of the last run."},
            "error": TEXT,
            "output": ANYTHING,
            "reason": TEXT | {"description": "Why it waits."},
            "workerId": TEXT,
        },
    ),
    "Stream": record(
        {"status": schema("Status"), "stream": {"type": "array", "items": schema("Element")}}
    ),
    "Element": {
        "type": "object",
        "required": ["output"],
        "properties": {"output": ANYTHING, "metrics": ANYTHING},
    },
    "Purged": record({"removed": COUNT, "status": {"const": "completed"}}),
    "EndpointHealth": record(
        {
            "jobs": record(dict.fromkeys(_JOBS, COUNT)),
            "workers": record(dict.fromkeys(_WORKERS, COUNT)),
            "durable": {"type": "boolean"},
        }
    ),
    "Requests": record(
        {
            "requests": {"type": "array", "items": schema("RequestRow")},
            "next": {
                "type": ["string", "null"],
                "description": "`before` of the next page, an opaque text.",
            },
        }
    ),
    "RequestRow": record(
        {
            "id": TEXT,
            "status": schema("Status"),
            "createdAt": COUNT,
            "delayTime": {"type": ["integer", "null"], "minimum": 0},
            "executionTime": {"type": ["integer", "null"], "minimum": 0},
            "retries": COUNT,
            "workerId": {"type": ["string", "null"]},
        }
    ),
    "QueueError": record({"error": TEXT}),
    "OpenAiError": {
        "type": "object",
        "required": ["error"],
        "properties": {
            "error": {
                "type": "object",
                "required": ["message", "type"],
                "properties": {
                    "message": TEXT,
                    "type": TEXT,
                    "param": {"type": ["string", "null"]},
                    "code": {
                        "type": ["string", "integer", "null"],
                        "description": "vLLM's own are numbers.",
                    },
                },
            }
        },
    },
    "AnthropicError": {
        "type": "object",
        "required": ["type", "error"],
        "properties": {
            "type": {"const": "error"},
            "error": {
                "type": "object",
                "required": ["type", "message"],
                "properties": {
                    "type": TEXT | {"examples": sorted(set(ANTHROPIC_TYPES.values()))},
                    "message": TEXT,
                },
            },
        },
    },
    "Model": {
        "type": "object",
        "required": ["id"],
        "properties": {"id": TEXT, "object": {"const": "model"}},
    },
    "ModelList": record(
        {"object": {"const": "list"}, "data": {"type": "array", "items": schema("Model")}}
    ),
    "Server": record(dict.fromkeys(("name", "version", "openai", "ready"), TEXT)),
    "Alive": record({"status": {"const": "ok"}}),
    "Ready": record({"status": TEXT}),
    "ServerHealth": record(
        {
            "status": {"const": "ok"},
            "endpoints": {
                "type": "object",
                "additionalProperties": record(
                    {
                        "jobs": record(dict.fromkeys(("inQueue", "inProgress"), COUNT)),
                        "workers": record(dict.fromkeys(_SERVER_WORKERS, COUNT)),
                    }
                ),
            },
        }
    ),
}
