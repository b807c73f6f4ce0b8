"""The route table of all APIs: a path that is not in it does not exist for any caller.

A backend defines the paths of its API and their meaning; this table defines who may call them.
`{endpoint}` is the id of an endpoint. A template that ends in another parameter matches the
parameter's pattern to the end of the path; for a model's id this may contain slashes.

The meaning of a route in the OpenAI API is part of its row. The gate passes it on to the backend,
with the values of the path's parameters.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from enum import Enum, auto
from typing import NamedTuple

from proxy.access.keys import Kind
from proxy.api.errors import ApiError
from proxy.api.openai.dialects import OPENAI
from proxy.api.openai.routes import MODEL_ROUTE, PREFIXES, OpenAiRoute
from proxy.api.openai.routes import ROUTES as OPENAI_ROUTES
from proxy.api.queue.app import OPERATIONS
from proxy.api.queue.response import queue_error
from proxy.api.scope import PathParameters
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
    """A row of the table.

    `kind` is the kind of key that the route requires, or None for a public route. `openai` is the
    row of the OpenAI API's own table, or None for a route of another API.
    """

    path: str
    methods: tuple[str, ...]
    kind: Kind | None
    backend: Backend
    openai: OpenAiRoute | None = None


class Found(NamedTuple):
    """The row of a path, and the values of the path's parameters."""

    route: Route
    parameters: PathParameters


READ_METHODS = ("GET", "HEAD")


def _openai_routes() -> Iterable[Route]:
    """Yield the routes of the OpenAI API at each of its base paths."""
    for place in PREFIXES:
        for path, route in (*OPENAI_ROUTES.items(), ("/v1/models/{model}", MODEL_ROUTE)):
            if place or path.startswith("/v1/"):
                yield Route(f"{place}{path}", route.methods, Kind.CLIENT, Backend.OPENAI, route)


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
        Route(f"/v2/{{endpoint}}/{verb}/{{call}}", (method,), Kind.WORKER, Backend.STOCK)
        for verb, method in STOCK_METHODS.items()
    ),
    Route("/v2/{endpoint}/worker", (WEBSOCKET,), Kind.WORKER, Backend.CHANNEL),
)


class Table:
    """The routes, indexed by path."""

    def __init__(self, routes: Iterable[Route] = ROUTES) -> None:
        self._exact: dict[str, Route] = {}
        # By the path before the last segment, which is a parameter: with its name and its pattern.
        self._prefixes: dict[str, tuple[Route, str, re.Pattern[str]]] = {}
        for route in routes:
            prefix, _, last = route.path.rpartition("/")
            if last in _PARAMETERS:
                self._prefixes[prefix] = (route, last.strip("{}"), _PARAMETERS[last])
            else:
                self._exact[route.path] = route

    def find(self, path: str) -> Found | None:
        """Return the row and the parameters of a path, without regard to the method, or None."""
        endpoint = None
        if path.startswith("/v2/"):
            endpoint, slash, rest = path[4:].partition("/")
            if not slash or not _ENDPOINT.fullmatch(endpoint):
                return None
            path = "/v2/{endpoint}/" + rest
        parameters = PathParameters(endpoint)
        route = self._exact.get(path)
        if route is not None:
            return Found(route, parameters)
        return self._find_prefix(path, parameters) or self._find_with_slash(path, parameters)

    def render_error(self, path: str, error: ApiError) -> bytes:
        """Return the JSON body of an error in the format of the API that the path belongs to."""
        found = self.find(path)
        if found is not None and found.route.openai is not None:
            return found.route.openai.dialect.error(error)
        return queue_error(error) if backend_of(path) is Backend.QUEUE else OPENAI.error(error)

    def _find_prefix(self, path: str, parameters: PathParameters) -> Found | None:
        *segments, rest = path.split("/", MAX_TEMPLATE_SEGMENTS)
        while segments:
            template = self._prefixes.get("/".join(segments))
            if template is not None:
                route, name, pattern = template
                if not pattern.fullmatch(rest):
                    return None
                # Some clients send a trailing slash, which does not belong to the model's id.
                value = rest if route.openai is None else rest.removesuffix("/")
                return Found(route, parameters._replace(**{name: value}))
            rest = f"{segments.pop()}/{rest}"
        return None

    def _find_with_slash(self, path: str, parameters: PathParameters) -> Found | None:
        """Find a route of the OpenAI API without the trailing slash that some clients send."""
        route = self._exact.get(path.removesuffix("/"))
        return None if route is None or route.openai is None else Found(route, parameters)


def backend_of(path: str) -> Backend:
    """Return the backend that renders "not found" for an unknown path."""
    if path.startswith("/v2/"):
        is_openai = path[4:].partition("/")[2].startswith("openai/")
        return Backend.OPENAI if is_openai else Backend.QUEUE
    return Backend.OPENAI if path.startswith(("/v1/", "/openai/")) else Backend.STATUS
