"""What is asked about the proxy itself."""

from typing import NamedTuple

from proxy.api.openapi.answers import KEY, refusals, success
from proxy.api.openapi.node import Node, as_json, operation_id, schema
from proxy.api.openapi.queue import KEYS
from proxy.api.openapi.schemas import OBJECT

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
    **dict.fromkeys(("/readyz", "/ping"), Page("Whether a worker can serve.", schema("Ready"), can_be_unready=True)),
    "/health": Page("Jobs and workers, endpoint by endpoint.", schema("ServerHealth"), is_open=False),
    "/openapi.json": Page("This document.", OBJECT, is_open=False),
}


def server_paths() -> dict[str, Node]:
    """The paths of all pages."""
    return {path: {method.lower(): _operation(method, path, page) for method in READ} for path, page in PAGES.items()}


def _operation(method: str, path: str, page: Page) -> Node:
    content = None if method == "HEAD" else as_json(page.answer)
    answers: Node = {"200": success(content, "Yes." if page.can_be_unready else "Done.")}
    answers |= refusals("openai", () if page.is_open else (KEY,))
    if page.can_be_unready:
        both: Node = {"anyOf": [page.answer, schema("OpenAiError")]}
        answers["503"] = success(None if method == "HEAD" else as_json(both), "Not yet, or no more; it says why.")
    return {
        "operationId": operation_id(method, path) + ("_root" if path == "/" else ""),
        "summary": page.summary,
        "tags": ["server"],
        "security": [] if page.is_open else KEYS,
        "responses": answers,
    }
