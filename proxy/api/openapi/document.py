"""The complete OpenAPI document, and the operations of the status pages."""

from typing import NamedTuple

from proxy.api.openapi.components import (
    COUNT,
    HEADERS,
    OBJECT,
    TEXT,
    UNAUTHORIZED,
    Node,
    as_json,
    operation_id,
    record,
    refusals,
    responses,
    schema,
    success,
)
from proxy.api.openapi.engine import engine_paths
from proxy.api.openapi.parameters import PARAMETERS
from proxy.api.openapi.queue import KEYS, queue_paths
from proxy.api.openapi.schemas import SCHEMAS

READ = ("GET", "HEAD")


_WORKERS = ("ready", "running", "initializing")
PAGE_SCHEMAS: Node = {
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
                        "workers": record(dict.fromkeys(_WORKERS, COUNT)),
                    }
                ),
            },
        }
    ),
}


class Page(NamedTuple):
    """The description of a status page.

    `is_open` means that it needs no API key, `can_be_unready` that it may return 503.
    """

    summary: str
    answer: Node
    is_open: bool = True
    can_be_unready: bool = False


PAGES: dict[str, Page] = {
    "/": Page(
        "Name and version of the server, and the paths where its APIs begin.", schema("Server")
    ),
    "/livez": Page("Liveness: 200 as long as the event loop runs.", schema("Alive")),
    **dict.fromkeys(
        ("/readyz", "/ping"),
        Page("Readiness: 200 if a worker is ready.", schema("Ready"), can_be_unready=True),
    ),
    "/health": Page(
        "Counts of jobs and workers, per endpoint.",
        schema("ServerHealth"),
        is_open=False,
        can_be_unready=True,
    ),
    "/openapi.json": Page("This document.", OBJECT, is_open=False),
}


def server_paths() -> dict[str, Node]:
    """Return the path items of all status pages."""
    return {
        path: {method.lower(): _operation(method, path, page) for method in READ}
        for path, page in PAGES.items()
    }


def _operation(method: str, path: str, page: Page) -> Node:
    content = None if method == "HEAD" else as_json(page.answer)
    answers: Node = {"200": success(content, "Ready." if page.can_be_unready else "Success.")}
    answers |= refusals("openai", () if page.is_open else (UNAUTHORIZED,))
    if page.can_be_unready:
        both: Node = {"anyOf": [schema("Ready"), schema("OpenAiError")]}
        answers["503"] = success(
            None if method == "HEAD" else as_json(both), "Not ready; `status` is the reason."
        )
    return {
        "operationId": operation_id(method, path) + ("_root" if path == "/" else ""),
        "summary": page.summary,
        "tags": ["server"],
        "security": [] if page.is_open else KEYS,
        "responses": answers,
    }


_TAGS = {
    "queue": "Runpod's queue API: submit, query and cancel jobs.",
    "openai": "OpenAI's API and the other routes of vLLM.",
    "anthropic": "Anthropic's Messages API.",
    "server": "Status of the proxy.",
}
_SCHEMES: Node = {
    "bearer": {"type": "http", "scheme": "bearer", "description": "`Authorization: Bearer KEY`"},
    "key": {
        "type": "apiKey",
        "in": "header",
        "name": "Authorization",
        "description": "The API key without a scheme.",
    },
    "anthropic": {
        "type": "apiKey",
        "in": "header",
        "name": "X-Api-Key",
        "description": "The header that Anthropic's SDKs send.",
    },
    "azure": {
        "type": "apiKey",
        "in": "header",
        "name": "Api-Key",
        "description": "The header that clients of Azure send.",
    },
}


def document(version: str) -> dict[str, object]:
    """Return the OpenAPI 3.1 document of all client routes; `version` is the proxy's."""
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "vllm-serverless",
            "version": version,
            "summary": "Runpod's queue API and the OpenAI API in front of vLLM workers.",
            "description": "If the proxy has no API key configured, requests need none.",
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
        },
        "servers": [{"url": "/"}],
        "tags": [{"name": name, "description": description} for name, description in _TAGS.items()],
        "paths": server_paths() | queue_paths() | engine_paths(),
        "components": {
            "schemas": SCHEMAS | PAGE_SCHEMAS,
            "parameters": PARAMETERS,
            "headers": HEADERS,
            "responses": responses(),
            "securitySchemes": _SCHEMES,
        },
    }
