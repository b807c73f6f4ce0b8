"""The route table of all APIs: a path that is not in it does not exist for any caller.

A backend defines the paths of its API and their meaning; this table defines who may call them.
`{endpoint}` is the id of an endpoint. A template that ends in another parameter matches the
parameter's pattern to the end of the path; for a model's id this may contain slashes.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from enum import Enum, auto

from proxy.access.keys import Kind
from proxy.api.openai.routes import PREFIXES, is_openai
from proxy.api.openai.routes import ROUTES as OPENAI_ROUTES
from proxy.api.queue.app import OPERATIONS
from proxy.channel.runpod.app import METHODS as STOCK_METHODS

# Used as the method of a GET request that asks for an upgrade to a WebSocket.
WEBSOCKET = "WEBSOCKET"

MAX_TEMPLATE_SEGMENTS = 8

_ENDPOINT = re.compile(r"[A-Za-z0-9_-]{1,80}")
_PARAMETERS = {
    "{job}": re.compile(r"[A-Za-z0-9_-]{1,80}"),
    "{model}": re.compile(r"[^\x00-\x1f\x7f]{1,256}"),
    # Validated by the backend, which delays its refusal: a Runpod worker repeats it at once.
    "{call}": re.compile(r".+", re.DOTALL),
}


class Backend(Enum):
    """The application that serves a route."""

    STATUS = auto()
    QUEUE = auto()
    OPENAI = auto()
    STOCK = auto()
    CHANNEL = auto()


@dataclass(frozen=True, slots=True)
class Route:
    """A row of the table. `kind` is the kind of key that the route requires; None: it is public."""

    path: str
    methods: tuple[str, ...]
    kind: Kind | None
    backend: Backend


READ_METHODS = ("GET", "HEAD")


def _openai_routes() -> Iterable[Route]:
    """Yield the routes of the OpenAI API at each of its base paths."""
    for place in PREFIXES:
        for path, route in OPENAI_ROUTES.items():
            if place or path.startswith("/v1/"):
                yield Route(f"{place}{path}", route.methods, Kind.CLIENT, Backend.OPENAI)


ROUTES: tuple[Route, ...] = (
    *(
        Route(path, READ_METHODS, None, Backend.STATUS)
        for path in ("/", "/livez", "/readyz", "/ping")
    ),
    *(
        Route(path, READ_METHODS, Kind.CLIENT, Backend.STATUS)
        for path in ("/health", "/openapi.json")
    ),
    *(
        Route(f"/v2/{{endpoint}}{path}", methods, Kind.CLIENT, Backend.QUEUE)
        for path, methods in OPERATIONS.items()
    ),
    *_openai_routes(),
    *(
        Route(f"{place}/v1/models/{{model}}", READ_METHODS, Kind.CLIENT, Backend.OPENAI)
        for place in PREFIXES
    ),
    *(
        Route(f"/v2/{{endpoint}}/{verb}/{{call}}", (method,), Kind.WORKER, Backend.STOCK)
        for verb, method in STOCK_METHODS.items()
    ),
    Route("/v2/{endpoint}/worker", (WEBSOCKET,), Kind.WORKER, Backend.CHANNEL),
)


class Table:
    """The routes, indexed by path."""

    def __init__(self, routes: Iterable[Route] = ROUTES) -> None:
        self._exact: dict[str, Route] = {}
        # By the path before the last segment, which is a parameter.
        self._prefixes: dict[str, tuple[Route, re.Pattern[str]]] = {}
        for route in routes:
            prefix, _, last = route.path.rpartition("/")
            if last in _PARAMETERS:
                self._prefixes[prefix] = (route, _PARAMETERS[last])
            else:
                self._exact[route.path] = route

    def find(self, path: str) -> Route | None:
        """Return the route of a path, without regard to the method, or None."""
        if path.startswith("/v2/"):
            endpoint, slash, rest = path[4:].partition("/")
            if not slash or not _ENDPOINT.fullmatch(endpoint):
                return None
            path = "/v2/{endpoint}/" + rest
        return self._exact.get(path) or self._find_prefix(path) or self._find_with_slash(path)

    def _find_prefix(self, path: str) -> Route | None:
        *segments, rest = path.split("/", MAX_TEMPLATE_SEGMENTS)
        while segments:
            found = self._prefixes.get("/".join(segments))
            if found is not None:
                route, pattern = found
                return route if pattern.fullmatch(rest) else None
            rest = f"{segments.pop()}/{rest}"
        return None

    def _find_with_slash(self, path: str) -> Route | None:
        """Find a route of the OpenAI API without the trailing slash that some clients send."""
        route = self._exact.get(path.removesuffix("/"))
        return route if route is not None and route.backend is Backend.OPENAI else None


def backend_of(path: str) -> Backend:
    """Return the backend that renders "not found" for an unknown path."""
    if is_openai(path):
        return Backend.OPENAI
    return Backend.QUEUE if path.startswith("/v2/") else Backend.STATUS
