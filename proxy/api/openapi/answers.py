"""What an operation may answer besides its own success: the table of errors, status by status, in three voices."""

from collections.abc import Iterable

from proxy.api.errors import ERRORS
from proxy.api.openapi.node import Node, as_json, ref, schema, whole

EDGE = (400, 403, 408, 415, 431, 503)  # said of any request, before anybody looks where it goes
BAD, KEY, MISSING, LIMITED = 400, 401, 404, 429
LONGEST_RETRY = 60  # seconds; the OpenAI SDK for Python does not retry at all above it

MEANINGS = {
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
VOICES: dict[str, Node] = {
    "queue": schema("QueueError"),
    "openai": schema("OpenAiError"),
    "anthropic": {"anyOf": [schema("AnthropicError"), schema("OpenAiError")]},
}

_RATE = tuple(f"x-ratelimit-{what}-requests" for what in ("limit", "remaining", "reset"))
ENGINE_HEADERS = ("x-request-id", "x-job-id", "openai-processing-ms", "openai-version")


def _header(description: str, of: Node) -> Node:
    return {"description": description, "schema": of}


HEADERS: Node = {
    "Retry-After": _header("Seconds.", whole(1, LONGEST_RETRY)),
    "x-should-retry": _header("Whether the OpenAI SDKs post it again.", {"type": "string", "enum": ["true", "false"]}),
    "WWW-Authenticate": _header("How to send a key.", {"const": "Bearer"}),
    "x-ratelimit-limit-requests": _header("Requests in ten seconds.", whole(0)),
    "x-ratelimit-remaining-requests": _header("What is left of them.", whole(0)),
    "x-ratelimit-reset-requests": _header("Until they begin anew.", {"type": "string", "pattern": "^[0-9]+s$"}),
    "x-request-id": _header("The client's own, or one that was made for it.", _TEXT),
    "x-job-id": _header("The call's job, where there is one.", _TEXT),
    "openai-processing-ms": _header("Milliseconds until the head went out.", whole(0)),
    "openai-version": _header("The version of the API.", _TEXT),
}


def headers(names: Iterable[str]) -> Node:
    """These headers, by their names."""
    return {name: ref("headers", name) for name in names}


def success(content: Node | None, description: str, *, names: Iterable[str] = (), limited: bool = False) -> Node:
    """A 200. `limited`: its headers say what is left of the limit."""
    answer: Node = {"description": description}
    found = headers([*names, *(_RATE if limited else ())])
    return answer | ({"headers": found} if found else {}) | ({"content": content} if content else {})


def refusals(voice: str, statuses: Iterable[int]) -> Node:
    """The errors with these statuses, as one of the APIs tells them."""
    return {str(status): ref("responses", f"{voice}-{status}") for status in sorted({*EDGE, *statuses})}


def responses() -> Node:
    """Every error in every voice, to be referred to."""
    return {f"{voice}-{status}": _response(status, voice) for voice in VOICES for status in MEANINGS}


def _response(status: int, voice: str) -> Node:
    rows = {code: row for code, row in ERRORS.items() if row.status == status}
    names = [] if voice == "queue" else [*ENGINE_HEADERS]
    if status == KEY:
        names.append("WWW-Authenticate")
    if status == LIMITED or any(row.retry_after for row in rows.values()):
        names.append("Retry-After")
    if any(row.should_retry is not None for row in rows.values()):
        names.append("x-should-retry")
    codes = ", ".join(f"`{code}`" for code in rows)
    description = MEANINGS[status] + (f" Codes: {codes}." if codes else "")
    return success(as_json(VOICES[voice]), description, names=names, limited=status == LIMITED)
