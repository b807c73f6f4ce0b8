"""The whole document."""

from proxy.api.openapi.answers import HEADERS, responses
from proxy.api.openapi.engine import engine_paths
from proxy.api.openapi.node import Node
from proxy.api.openapi.parameters import PARAMETERS
from proxy.api.openapi.queue import queue_paths
from proxy.api.openapi.schemas import SCHEMAS
from proxy.api.openapi.server import server_paths

_TAGS = {
    "queue": "Jobs: submitted, asked about, ended. Runpod's queue API.",
    "openai": "OpenAI's API and vLLM's other routes.",
    "anthropic": "Anthropic's messages.",
    "server": "The proxy itself.",
}
_SCHEMES: Node = {
    "bearer": {"type": "http", "scheme": "bearer", "description": "`Authorization: Bearer KEY`"},
    "key": {"type": "apiKey", "in": "header", "name": "Authorization", "description": "The key alone."},
    "anthropic": {"type": "apiKey", "in": "header", "name": "X-Api-Key", "description": "As Anthropic's SDKs send it."},
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
