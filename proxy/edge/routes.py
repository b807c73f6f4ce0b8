"""The one route table: what is not in it does not exist, for anybody, whatever an application behind it has registered.

The rooms behind say what their paths mean; who may enter is said here. `{endpoint}` is an endpoint's id, and a template
that ends in another name takes whatever its pattern takes, which for a model's id may hold slashes.
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

WEBSOCKET = "WEBSOCKET"  # as a method: a GET that asks to become one
DEEPEST = 8  # segments of a template

_ENDPOINT = re.compile(r"[A-Za-z0-9_-]{1,80}")
_PARAMETERS = {
    "{job}": re.compile(r"[A-Za-z0-9_-]{1,80}"),
    "{model}": re.compile(r"[^\x00-\x1f\x7f]{1,256}"),
    "{call}": re.compile(
        r".+", re.DOTALL
    ),  # judged by the room, slowly: a stock worker asks again at once
}


class Backend(Enum):
    """Who answers."""

    STATUS = auto()
    QUEUE = auto()
    OPENAI = auto()
    STOCK = auto()
    CHANNEL = auto()


@dataclass(frozen=True, slots=True)
class Route:
    """One row: a path, how it may be asked, by whom (None: anyone), and who answers."""

    path: str
    methods: tuple[str, ...]
    kind: Kind | None
    backend: Backend


READ = ("GET", "HEAD")

ROUTES: tuple[Route, ...] = (
    *(Route(path, READ, None, Backend.STATUS) for path in ("/", "/livez", "/readyz", "/ping")),
    *(Route(path, READ, Kind.CLIENT, Backend.STATUS) for path in ("/health", "/openapi.json")),
    *(
        Route(f"/v2/{{endpoint}}{path}", methods, Kind.CLIENT, Backend.QUEUE)
        for path, methods in OPERATIONS.items()
    ),
    *(
        Route(f"{place}{path}", route.methods, Kind.CLIENT, Backend.OPENAI)
        for place in PREFIXES
        for path, route in OPENAI_ROUTES.items()
        if place or path.startswith("/v1/")
    ),
    *(
        Route(f"{place}/v1/models/{{model}}", READ, Kind.CLIENT, Backend.OPENAI)
        for place in PREFIXES
    ),
    *(
        Route(f"/v2/{{endpoint}}/{verb}/{{call}}", (method,), Kind.WORKER, Backend.STOCK)
        for verb, method in STOCK_METHODS.items()
    ),
    Route("/v2/{endpoint}/worker", (WEBSOCKET,), Kind.WORKER, Backend.CHANNEL),
)


class Table:
    """Finds a request's row."""

    def __init__(self, routes: Iterable[Route] = ROUTES) -> None:
        self._whole: dict[str, Route] = {}
        self._open: dict[str, tuple[Route, re.Pattern[str]]] = {}
        for route in routes:
            prefix, _, last = route.path.rpartition("/")
            if last in _PARAMETERS:
                self._open[prefix] = (route, _PARAMETERS[last])
            else:
                self._whole[route.path] = route

    def find(self, path: str) -> Route | None:
        """The row of a path, for whatever method."""
        if path.startswith("/v2/"):
            endpoint, slash, rest = path[4:].partition("/")
            if not slash or not _ENDPOINT.fullmatch(endpoint):
                return None
            path = "/v2/{endpoint}/" + rest
        return self._whole.get(path) or self._find_open(path) or self._find_with_slash(path)

    def _find_open(self, path: str) -> Route | None:
        *segments, rest = path.split("/", DEEPEST)
        while segments:
            found = self._open.get("/".join(segments))
            if found is not None:
                route, pattern = found
                return route if pattern.fullmatch(rest) else None
            rest = f"{segments.pop()}/{rest}"
        return None

    def _find_with_slash(self, path: str) -> Route | None:
        """OpenAI's clients are forgiven a slash at the end."""
        route = self._whole.get(path.removesuffix("/"))
        return route if route is not None and route.backend is Backend.OPENAI else None


def backend_of(path: str) -> Backend:
    """Who says that there is nothing at this path."""
    if is_openai(path):
        return Backend.OPENAI
    return Backend.QUEUE if path.startswith("/v2/") else Backend.STATUS
