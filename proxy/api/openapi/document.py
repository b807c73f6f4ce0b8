"""The whole document.

What is asked about the proxy itself.
"""

from typing import NamedTuple

from proxy.api.openapi.components import (
    HEADERS,
    OBJECT,
    PARAMETERS,
    SCHEMAS,
    UNAUTHORIZED,
    Node,
    as_json,
    operation_id,
    refusals,
    responses,
    schema,
    success,
)
from proxy.api.openapi.engine import engine_paths
from proxy.api.openapi.queue import KEYS, queue_paths

READ = ("GET", "HEAD")


class Page(NamedTuple):
    """One path: what it says, and whether anyone may ask."""

    summary: str
    answer: Node
    is_open: bool = True
    can_be_unready: bool = False


PAGES: dict[str, Page] = {
    "/": Page("What this is and where its API begins.", schema("Server")),
    "/livez": Page("Whether the event loop turns.", schema("Alive")),
    **dict.fromkeys(
        ("/readyz", "/ping"),
        Page("Whether a worker can serve.", schema("Ready"), can_be_unready=True),
    ),
    "/health": Page(
        "Jobs and workers, endpoint by endpoint.", schema("ServerHealth"), is_open=False
    ),
    "/openapi.json": Page("This document.", OBJECT, is_open=False),
}


def server_paths() -> dict[str, Node]:
    """The paths of all pages."""
    return {
        path: {method.lower(): _operation(method, path, page) for method in READ}
        for path, page in PAGES.items()
    }


def _operation(method: str, path: str, page: Page) -> Node:
    content = None if method == "HEAD" else as_json(page.answer)
    answers: Node = {"200": success(content, "Yes." if page.can_be_unready else "Done.")}
    answers |= refusals("openai", () if page.is_open else (UNAUTHORIZED,))
    if page.can_be_unready:
        both: Node = {"anyOf": [page.answer, schema("OpenAiError")]}
        answers["503"] = success(
            None if method == "HEAD" else as_json(both), "Not yet, or no more; it says why."
        )
    return {
        "operationId": operation_id(method, path) + ("_root" if path == "/" else ""),
        "summary": page.summary,
        "tags": ["server"],
        "security": [] if page.is_open else KEYS,
        "responses": answers,
    }


_TAGS = {
    "queue": "Jobs: submitted, asked about, ended. Runpod's queue API.",
    "openai": "OpenAI's API and vLLM's other routes.",
    "anthropic": "Anthropic's messages.",
    "server": "The proxy itself.",
}
_SCHEMES: Node = {
    "bearer": {"type": "http", "scheme": "bearer", "description": "`Authorization: Bearer KEY`"},
    "key": {
        "type": "apiKey",
        "in": "header",
        "name": "Authorization",
        "description": "The key alone.",
    },
    "anthropic": {
        "type": "apiKey",
        "in": "header",
        "name": "X-Api-Key",
        "description": "As Anthropic's SDKs send it.",
    },
}


def document(version: str) -> dict[str, object]:
    """OpenAPI 3.1 of everything that a client may ask. Where no key is configured, none is needed."""
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "vllm-serverless",
            "version": version,
            "summary": "Runpod's queue API and the OpenAI API in front of vLLM workers.",
            "description": "Where the proxy has no key configured, none is needed.",
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
        },
        "servers": [{"url": "/"}],
        "tags": [{"name": name, "description": description} for name, description in _TAGS.items()],
        "paths": server_paths() | queue_paths() | engine_paths(),
        "components": {
            "schemas": SCHEMAS,
            "parameters": PARAMETERS,
            "headers": HEADERS,
            "responses": responses(),
            "securitySchemes": _SCHEMES,
        },
    }
