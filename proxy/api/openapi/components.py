"""The reusable parts of the OpenAPI document: schemas, parameters, headers and error responses.

Objects of the proxy are closed (no additional properties); objects of the engine are open. Error
responses are generated from the table of errors, one per status and format.
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
"""A JSON object of the document."""

CURSOR_PATTERN = "^([0-9]+-)?[0-9]+$"

_SEPARATOR = re.compile(r"[^A-Za-z0-9]+")


def ref(kind: str, name: str) -> Node:
    """Refer to a component; `kind` is `schemas`, `responses`, `parameters` or `headers`."""
    return {"$ref": f"#/components/{kind}/{name}"}


def schema(name: str) -> Node:
    """Refer to a schema."""
    return ref("schemas", name)


def as_json(of: Node) -> Node:
    """Return the content of a JSON body with a schema."""
    return {"application/json": {"schema": of}}


def record(required: dict[str, Node], optional: dict[str, Node] | None = None) -> Node:
    """Return the schema of a closed object: these fields and no others."""
    properties = required | (optional or {})
    return {
        "type": "object",
        "required": [*required],
        "properties": properties,
        "additionalProperties": False,
    }


def integer(minimum: int, maximum: int | None = None, **more: object) -> Node:
    """Return the schema of an integer within bounds."""
    bounds: Node = {"minimum": minimum}
    if maximum is not None:
        bounds["maximum"] = maximum
    return {"type": "integer", **bounds, **more}


def operation_id(method: str, path: str) -> str:
    """Return the id of an operation, for generated clients and links."""
    return _SEPARATOR.sub("_", f"{method.lower()}{path}").strip("_")


# Any request can receive these, before it is matched to a route.
EDGE_STATUSES = (400, 403, 408, 415, 431, 503)
UNAUTHORIZED = 401
NOT_FOUND = 404
TOO_MANY_REQUESTS = 429
# OpenAI's SDK for Python does not retry at all after a longer delay.
RETRY_AFTER_MAX_SECONDS = 60

STATUS_DESCRIPTIONS = {
    400: "The request is invalid; the message names the part that is wrong.",
    401: "The API key is wrong or missing.",
    403: (
        "The `Host` header does not name this proxy, or no API key is configured and the request"
        " comes from a web page of another origin."
    ),
    404: "The endpoint, job or model does not exist or is not visible to this API key.",
    408: "The request was not received in time.",
    409: "The status of the job does not allow the operation.",
    413: "The body is too large.",
    415: "The `Content-Type` or `Content-Encoding` is not supported.",
    429: "The rate limit of the API key is exceeded, or the queue is full.",
    431: "The request line and headers are too large.",
    500: "The engine or the proxy failed.",
    502: "The worker was lost, or its response was too large.",
    503: "No worker is available, or the server is out of memory, disk space or connections.",
    504: "The job exceeded its execution timeout or its time to live.",
}

TEXT: Node = {"type": "string"}
COUNT: Node = {"type": "integer", "minimum": 0}
ANYTHING: Node = {}
OBJECT: Node = {"type": "object"}

# The three formats of errors, and their schemas.
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
    "Retry-After": _header("Seconds to wait before a retry.", integer(1, RETRY_AFTER_MAX_SECONDS)),
    "x-should-retry": _header(
        "Tells the OpenAI SDKs whether to retry the request.",
        {"type": "string", "enum": ["true", "false"]},
    ),
    "WWW-Authenticate": _header("The scheme of the API key.", {"const": "Bearer"}),
    "x-ratelimit-limit-requests": _header("Requests allowed per ten seconds.", integer(0)),
    "x-ratelimit-remaining-requests": _header("Requests left in this window.", integer(0)),
    "x-ratelimit-reset-requests": _header(
        "Time until the next window.", {"type": "string", "pattern": "^[0-9]+s$"}
    ),
    "x-request-id": _header("The client's `X-Request-Id`, or a generated id.", TEXT),
    "x-job-id": _header("The id of the job, if the request became one.", TEXT),
    "openai-processing-ms": _header("Milliseconds until the response started.", integer(0)),
    "openai-version": _header("The version of the API.", TEXT),
}


def headers(names: Iterable[str]) -> Node:
    """Refer to headers by their names."""
    return {name: ref("headers", name) for name in names}


def success(
    content: Node | None, description: str, *, names: Iterable[str] = (), limited: bool = False
) -> Node:
    """Return a response with headers; `limited` adds the rate limit headers."""
    answer: Node = {"description": description}
    if found := headers([*names, *(_RATE if limited else ())]):
        answer["headers"] = found
    if content:
        answer["content"] = content
    return answer


def refusals(api: str, statuses: Iterable[int]) -> Node:
    """Refer to the error responses with these statuses, in one of the three formats."""
    return {
        str(status): ref("responses", f"{api}-{status}")
        for status in sorted({*EDGE_STATUSES, *statuses})
    }


def responses() -> Node:
    """Return the error responses of every status in every format."""
    found: Node = {}
    for api in ERROR_SCHEMAS:
        for status in STATUS_DESCRIPTIONS:
            found[f"{api}-{status}"] = _response(status, api)
    return found


def _response(status: int, api: str) -> Node:
    rows = {code: row for code, row in ERRORS.items() if row.status == status}
    names = [] if api == "queue" else [*ENGINE_HEADERS]
    if status == UNAUTHORIZED:
        names.append("WWW-Authenticate")
    if status == TOO_MANY_REQUESTS or any(row.retry_after for row in rows.values()):
        names.append("Retry-After")
    if any(row.should_retry is not None for row in rows.values()):
        names.append("x-should-retry")
    codes = ", ".join(f"`{code}`" for code in rows)
    description = STATUS_DESCRIPTIONS[status] + (f" Codes: {codes}." if codes else "")
    return success(
        as_json(ERROR_SCHEMAS[api]), description, names=names, limited=status == TOO_MANY_REQUESTS
    )


# The ids of endpoints and jobs.
ID_PATTERN = "^[A-Za-z0-9_-]{1,80}$"
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
    "endpoint": _id("endpoint", ID_PATTERN, "The endpoint's id."),
    "job": _id("job", ID_PATTERN, "The job's id."),
    "model": _id("model", MODEL_PATTERN, "The model's id, which may contain slashes."),
    "wait": _query(
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
    "x-request-id": _parameter(
        "header",
        "X-Request-Id",
        {"type": "string", "pattern": "^[A-Za-z0-9._-]{1,80}$"},
        "Returned with the response; an id that does not match the pattern is replaced.",
    ),
}


def parameters(*names: str) -> list[Node]:
    """Refer to parameters by their names."""
    return [ref("parameters", name) for name in names]


_POLICY: Node = {
    "type": ["object", "null"],
    "properties": {
        "executionTimeout": integer(
            MIN_EXECUTION_TIMEOUT_MS,
            MAX_EXECUTION_TIMEOUT_MS,
            description="Maximum milliseconds of one run.",
        )
        | {"type": ["integer", "null"]},
        "ttl": integer(
            MIN_TTL_MS, MAX_TTL_MS, description="Time to live of the job, in milliseconds."
        )
        | {"type": ["integer", "null"]},
        "lowPriority": {
            "type": ["boolean", "null"],
            "description": "Start after all jobs of normal priority.",
        },
    },
}
_ORDER: Node = {
    "type": "object",
    "required": ["input"],
    "properties": {
        "input": {
            "type": ["object", "array", "string", "number", "boolean"],
            "description": "The input of the job: any JSON value except null.",
        },
        "webhook": {
            "type": ["string", "null"],
            "format": "uri",
            "maxLength": WEBHOOK_URL_MAX_CHARACTERS,
            "description": "URL that receives a POST request when the job has ended.",
        },
        "policy": _POLICY,
        "s3Config": {
            "type": ["object", "null"],
            "description": "Passed to Runpod workers only; stored encrypted, never returned.",
        },
    },
    "examples": [{"input": {"prompt": "Hello", "sampling_params": {"max_tokens": 3}}}],
}
_STATUS: Node = {"type": "string", "enum": [*Status]}
_WORKERS = ("idle", "initializing", "ready", "running", "throttled", "unhealthy")
_JOBS = ("completed", "failed", "inProgress", "inQueue", "retried")

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
            "reason": TEXT | {"description": "Reason why the job is queued."},
            "workerId": TEXT,
        },
    ),
    "Stream": record(
        {"status": schema("Status"), "stream": {"type": "array", "items": schema("Element")}},
        {"next": {"type": "string", "pattern": CURSOR_PATTERN}},
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
                "description": "The value of `before` for the next page; opaque.",
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
                        "description": "Errors of vLLM have numbers.",
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
}
