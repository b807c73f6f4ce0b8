"""The operations of the OpenAI API and vLLM's other routes, with and without `/v1`, at three bases.

The schemas of bodies are open: the fields are documented by vLLM, and the engine's response is
passed on unchanged.
"""

from proxy.api.openai.dialects import ANTHROPIC
from proxy.api.openai.routes import (
    BASES,
    MODEL_PATHS,
    MODEL_ROUTE,
    ROUTES,
    AnsweredBy,
    OpenAiRoute,
)
from proxy.api.openapi.components import (
    ENGINE_HEADERS,
    EVENTS,
    NOT_FOUND,
    OBJECT,
    TOO_MANY_REQUESTS,
    UNAUTHORIZED,
    UPGRADE_REQUIRED,
    Node,
    as_json,
    operation_id,
    refusals,
    schema,
    success,
)
from proxy.api.openapi.parameters import parameters
from proxy.jobs.model import EVENT_STREAM

KEYS: list[Node] = [{"bearer": []}, {"key": []}, {"anthropic": []}, {"azure": []}]
FAILURES = (UNAUTHORIZED, NOT_FOUND, 409, 413, TOO_MANY_REQUESTS, 500, 502, 504)

_TEXT: Node = {"schema": {"type": "string"}}
_BYTES: Node = {"application/octet-stream": {}}
# Further content types of vLLM's responses, which clients may select.
_MORE: dict[str, Node] = {
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
            "description": "If null, empty or missing: the endpoint's model, or the default one.",
        },
        "stream": {
            "description": "`true`: respond with server-sent events, if the route supports them."
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
_ENGINE: Node = {"description": "Any other response of the engine, unchanged."}


def engine_paths() -> dict[str, Node]:
    """Return the path items of all routes at all bases."""
    rows = (*ROUTES.items(), *((path, MODEL_ROUTE) for path in MODEL_PATHS))
    return {f"{base}{path}": _path(base, path, route) for base in BASES for path, route in rows}


def _path(base: str, path: str, route: OpenAiRoute) -> Node:
    ids = [name for name in ("endpoint", "model") if f"{{{name}}}" in base + path]
    item: Node = {"parameters": parameters(*ids)} if ids else {}
    make = _models if route.answered_by is AnsweredBy.MODELS else _call
    return item | {method.lower(): make(method, base, path, route) for method in route.methods}


def _call(method: str, base: str, path: str, route: OpenAiRoute) -> Node:
    content = as_json(OBJECT) | _MORE.get(route.path, {})
    if not route.is_light:
        content[EVENT_STREAM] = EVENTS
    api = "anthropic" if route.dialect is ANTHROPIC else "openai"
    sent: Node = {"multipart/form-data": {"schema": _FORM}} if route.is_form else as_json(_CALL)
    answer = success(content, "The engine's response.", names=ENGINE_HEADERS, limited=True)
    return {
        "operationId": operation_id(method, base + path),
        "summary": f"Call vLLM's {route.path}.",
        "tags": [api],
        "security": KEYS,
        "parameters": parameters("x-request-id", "x-heartbeat", "idempotency-key"),
        "requestBody": {"required": True, "content": sent},
        "responses": {"200": answer} | refusals(api, FAILURES) | {"default": _ENGINE},
    }


def _models(method: str, base: str, path: str, _: OpenAiRoute) -> Node:
    one = path.endswith("{model}")
    shown = as_json(schema("Model" if one else "ModelList"))
    refused = [UNAUTHORIZED, UPGRADE_REQUIRED]
    if one or "{endpoint}" in base:
        refused.append(NOT_FOUND)
    return {
        "operationId": operation_id(method, base + path),
        "summary": "Return a model." if one else "List the models. Needs no worker.",
        "tags": ["openai"],
        "security": KEYS,
        "parameters": parameters("x-request-id"),
        "responses": {
            "200": success(None if method == "HEAD" else shown, "Success.", names=ENGINE_HEADERS),
            **refusals("openai", refused),
        },
    }
