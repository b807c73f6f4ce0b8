"""The OpenAI API and vLLM's other routes, at their three places: `api.routes` with what they take and give.

What the engine says is the engine's: its documentation has the fields, and an answer of it is passed on as it came.
"""

from proxy.api.openai.dialects import ANTHROPIC
from proxy.api.openai.routes import PREFIXES, ROUTES, AnsweredBy, Route
from proxy.api.openapi.components import (
    ENGINE_HEADERS,
    NOT_FOUND,
    OBJECT,
    TOO_MANY_REQUESTS,
    UNAUTHORIZED,
    Node,
    as_json,
    operation_id,
    parameters,
    refusals,
    schema,
    success,
)
from proxy.api.queue.sse import EVENT_STREAM

KEYS: list[Node] = [{"bearer": []}, {"key": []}, {"anthropic": []}]
MODELS = "/v1/models"
FAILURES = (UNAUTHORIZED, NOT_FOUND, 409, 413, TOO_MANY_REQUESTS, 500, 502, 504)

_TEXT: Node = {"schema": {"type": "string"}}
_BYTES: Node = {"application/octet-stream": {}}
_MORE: dict[str, Node] = {  # what vLLM answers with where another form is asked for
    "/v1/audio/transcriptions": {"text/plain": _TEXT},
    "/v1/audio/translations": {"text/plain": _TEXT},
    "/v1/embeddings": _BYTES,
    "/pooling": _BYTES,
}
_CALL: Node = {
    "type": "object",
    "properties": {
        "model": {
            "type": ["string", "null"],
            "description": "Null or none: the endpoint's own, or the default one.",
        },
        "stream": {
            "description": "`true`: the answer comes as server-sent events, where the route has those."
        },
    },
}
_FORM: Node = {
    "type": "object",
    "required": ["file"],
    "properties": {
        "file": {"type": "string", "format": "binary"},
        "model": {"type": "string"},
        "stream": {"type": "boolean"},
    },
}
_ENGINE: Node = {"description": "What else the engine answered, as it came."}


def engine_paths() -> dict[str, Node]:
    """The paths of all routes at all places."""
    found = {}
    for place in PREFIXES:
        for path, route in ROUTES.items():
            if place or path.startswith("/v1/"):
                found[f"{place}{path}"] = _path(place, path, route)
        found[f"{place}{MODELS}/{{model}}"] = _path(place, f"{MODELS}/{{model}}", ROUTES[MODELS])
    return found


def _path(place: str, path: str, route: Route) -> Node:
    ids = [name for name in ("endpoint", "model") if f"{{{name}}}" in place + path]
    item: Node = {"parameters": parameters(*ids)} if ids else {}
    make = _models if route.answered_by is AnsweredBy.MODELS else _call
    return item | {method.lower(): make(method, place, path, route) for method in route.methods}


def _call(method: str, place: str, path: str, route: Route) -> Node:
    content = as_json(OBJECT) | _MORE.get(route.path or path, {})
    if not route.is_light:
        content[EVENT_STREAM] = _TEXT
    voice = "anthropic" if route.dialect is ANTHROPIC else "openai"
    sent: Node = {"multipart/form-data": {"schema": _FORM}} if route.is_form else as_json(_CALL)
    answer = success(content, "The engine's answer.", names=ENGINE_HEADERS, limited=True)
    return {
        "operationId": operation_id(method, place + path),
        "summary": f"vLLM's {route.path or path}.",
        "tags": [voice],
        "security": KEYS,
        "parameters": parameters("x-request-id"),
        "requestBody": {"required": True, "content": sent},
        "responses": {"200": answer} | refusals(voice, FAILURES) | {"default": _ENGINE},
    }


def _models(method: str, place: str, path: str, _: Route) -> Node:
    one = path.endswith("{model}")
    shown = as_json(schema("Model" if one else "ModelList"))
    can_miss = one or "{endpoint}" in place
    return {
        "operationId": operation_id(method, place + path),
        "summary": "One model." if one else "The models, without a worker too.",
        "tags": ["openai"],
        "security": KEYS,
        "parameters": parameters("x-request-id"),
        "responses": {
            "200": success(None if method == "HEAD" else shown, "Done.", names=ENGINE_HEADERS),
            **refusals("openai", (UNAUTHORIZED, NOT_FOUND) if can_miss else (UNAUTHORIZED,)),
        },
    }
