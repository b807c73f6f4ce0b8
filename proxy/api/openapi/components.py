"""Builders of the OpenAPI document, and its headers and error responses.

Error responses are generated from the table of errors, one per status and format.
"""

import re
from collections.abc import Iterable
from typing import TypeAlias

from proxy.api.errors import ERRORS

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
UNSUPPORTED_MEDIA_TYPE = 415
UPGRADE_REQUIRED = 426
TOO_MANY_REQUESTS = 429
# OpenAI's SDK for Python 1 ignores a longer delay.
RETRY_AFTER_MAX_SECONDS = 60

STATUS_DESCRIPTIONS = {
    400: "The request is invalid; the message names the part that is wrong.",
    401: "The API key is wrong or missing.",
    403: (
        "The `Host` header does not name this proxy, or no API key is configured and the request"
        " comes from a web page of another origin."
    ),
    404: (
        "The path, endpoint, job or model does not exist or is not visible to this API key, or the"
        " model does not support the route."
    ),
    408: "The request was not received in time.",
    409: (
        "The status of the job does not allow the operation, the job was cancelled, or the"
        " `Idempotency-Key` is in use or was used with another body."
    ),
    413: "The body is too large.",
    415: "The `Content-Type` or `Content-Encoding` is not supported.",
    429: "The rate limit of the API key is exceeded, or the queue is full.",
    426: "The route does not support WebSockets.",
    431: "The request line and headers are too large.",
    500: "The engine or the proxy failed.",
    502: "The worker was lost, or its response was too large.",
    503: (
        "No worker is available; or the server is shutting down, out of memory, disk space or"
        " connections, or its database does not respond."
    ),
    504: "The job exceeded its execution timeout or its time to live.",
}

TEXT: Node = {"type": "string"}
# OpenAPI 3.1 cannot describe the events of a stream: some tools validate each event as an object,
# others the whole stream as a text.
EVENTS: Node = {"schema": {"description": "Server-sent events."}}
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
    "Accept-Encoding": _header(
        "Sent if the reason is the `Content-Encoding` of the request.", {"const": "identity"}
    ),
    "Upgrade": _header("The protocol to use instead.", {"const": "HTTP/1.1"}),
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


_OWN_HEADERS = {
    UNAUTHORIZED: "WWW-Authenticate",
    UNSUPPORTED_MEDIA_TYPE: "Accept-Encoding",
    UPGRADE_REQUIRED: "Upgrade",
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
    if status in _OWN_HEADERS:
        names.append(_OWN_HEADERS[status])
    if status == TOO_MANY_REQUESTS or any(row.retry_after for row in rows.values()):
        names.append("Retry-After")
    if any(row.should_retry is not None for row in rows.values()):
        names.append("x-should-retry")
    codes = ", ".join(f"`{code}`" for code in rows)
    description = STATUS_DESCRIPTIONS[status] + (f" Codes: {codes}." if codes else "")
    return success(
        as_json(ERROR_SCHEMAS[api]), description, names=names, limited=status == TOO_MANY_REQUESTS
    )
