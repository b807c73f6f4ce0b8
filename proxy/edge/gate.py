"""The route table of all APIs, and the gate that applies it.

A path that is not in the table does not exist for any caller. A backend defines the paths of its
API and their meaning; this table defines who may call them. `{endpoint}` is the id of an endpoint.
A template that ends in another parameter matches the parameter's pattern to the end of the path;
for a model's id this may contain slashes. The meaning of a route in the OpenAI API is part of its
row.

The gate is an ASGI application in front of the backends. It finds the route of a request,
authenticates the caller and calls the route's backend, which receives the results in the scope
(`api.http.Routing`). Nothing behind the gate decides about access.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum, auto
from typing import Any, NamedTuple, Protocol

from proxy.access.keys import Keys, Kind, Principal, key_of
from proxy.api.errors import ApiError
from proxy.api.http import PathParameters, Routing, set_routing
from proxy.api.openai.dialects import OPENAI
from proxy.api.openai.routes import (
    BASES,
    MODEL_PATHS,
    MODEL_ROUTE,
    SHOWN_PATH_CHARACTERS,
    OpenAiRoute,
    unknown_route,
    without_repeated_version,
)
from proxy.api.openai.routes import ROUTES as OPENAI_ROUTES
from proxy.api.queue.app import OPERATIONS
from proxy.api.queue.response import queue_error
from proxy.channel.runpod.calls import METHODS as STOCK_METHODS
from proxy.edge.head import Fields, base_url, missing_host
from proxy.wire.frames import ID_PATTERN

# Used as the method of a GET request that asks for an upgrade to a WebSocket.
WEBSOCKET = "WEBSOCKET"

MAX_TEMPLATE_SEGMENTS = 8

_ENDPOINT = re.compile(ID_PATTERN)
_PARAMETERS = {
    "{job}": re.compile(ID_PATTERN),
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
    row of the OpenAI API's own table, or None for a route of another API. `operation` is that
    of the queue API, or empty.
    """

    path: str
    methods: tuple[str, ...]
    kind: Kind | None
    backend: Backend
    openai: OpenAiRoute | None = None
    operation: str = ""


class Found(NamedTuple):
    """The row of a path, and the values of the path's parameters."""

    route: Route
    parameters: PathParameters


READ_METHODS = ("GET", "HEAD")


def _openai_routes() -> Iterable[Route]:
    """Yield the routes of the OpenAI API at each of its base paths."""
    for base in BASES:
        for path, route in (*OPENAI_ROUTES.items(), *((path, MODEL_ROUTE) for path in MODEL_PATHS)):
            yield Route(f"{base}{path}", route.methods, Kind.CLIENT, Backend.OPENAI, route)


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
        Route(
            f"/v2/{{endpoint}}{path}",
            methods,
            Kind.CLIENT,
            Backend.QUEUE,
            operation=path.split("/")[1],
        )
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
        parameters = PathParameters()
        if path.startswith("/v2/"):
            # Without a second slash it is not below an endpoint: /v2/embed, /v2/rerank.
            endpoint, _, rest = path[4:].partition("/")
            if rest:
                if not _ENDPOINT.fullmatch(endpoint):
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


WORKER_BACKENDS = (Backend.STOCK, Backend.CHANNEL)

# Clients of Anthropic's API and of Azure send their key in the second and the third field.
KEY_FIELDS = (b"authorization", b"x-api-key", b"api-key")


class BackendApp(Protocol):
    """An ASGI application behind the gate, which also renders the gate's refusals in its format."""

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None: ...

    async def refuse(self, scope: Any, receive: Any, send: Any, error: ApiError) -> None:
        """Answer a request that the gate has rejected."""
        ...


class WorkerApp(Protocol):
    """An ASGI application for workers, which does not depend on the API's errors."""

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None: ...

    async def refuse(self, scope: Any, receive: Any, send: Any, status: int, sentence: str) -> None:
        """Answer a request that the gate has rejected with an HTTP status and a message."""
        ...


class WorkerBackend:
    """Adapter from `WorkerApp` to `BackendApp`."""

    def __init__(self, channel: WorkerApp) -> None:
        self._channel = channel

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        await self._channel(scope, receive, send)

    async def refuse(self, scope: Any, receive: Any, send: Any, error: ApiError) -> None:
        await self._channel.refuse(scope, receive, send, error.row.status, str(error))


class Gate:
    """Routes and authenticates every request; see the module's docstring."""

    def __init__(self, keys: Keys, table: Table, backends: Mapping[Backend, BackendApp]) -> None:
        self._keys = keys
        self._table = table
        self._backends = backends

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Pass the request to its backend, or refuse it."""
        try:
            route, parameters = self._find(scope)
            principal = self._authenticate(route, scope["headers"])
        except ApiError as error:
            await self.refuse(scope, receive, send, error)
            return
        set_routing(scope, Routing(parameters, route.openai, principal, route.operation))
        await self._backends[route.backend](scope, receive, send)

    async def refuse(self, scope: Any, receive: Any, send: Any, error: ApiError) -> None:
        """Answer a request with an error, in the format of the API at its path."""
        found = self._table.find(scope["path"])
        if scope["type"] == "websocket" and error.code == "upgrade_required":
            await receive()  # websocket.connect
            await _refuse_handshake(send, error, self._table.render_error(scope["path"], error))
            return
        if found is not None:
            set_routing(scope, Routing(found.parameters, found.route.openai))
        backend = self._backends[_refusing_backend(scope, found)]
        await backend.refuse(scope, receive, send, error)

    def admit(self, path: str, fields: Fields) -> Routing | None:
        """Return the routing of a POST request to the OpenAI API; None if it is another request or
        would be refused.
        """
        found = self._table.find(path)
        if found is None or found.route.openai is None or "POST" not in found.route.methods:
            return None
        try:
            principal = self._authenticate(found.route, fields)
        except ApiError:
            return None
        return Routing(found.parameters, found.route.openai, principal)

    def is_worker(self, path: str, fields: Fields) -> bool:
        """Return True for a request with a valid worker token: it may use a reserved connection."""
        found = self._table.find(path)
        if found is None or found.route.backend not in WORKER_BACKENDS:
            return False
        try:
            return self._authenticate(found.route, fields) is not None
        except ApiError:
            return False

    def _find(self, scope: Any) -> Found:
        """Return the route of a request. Raises ApiError if the path or the method is unknown."""
        path = scope["path"]
        is_websocket = scope["type"] == "websocket"
        method = WEBSOCKET if is_websocket else scope["method"]
        found = self._table.find(path)
        if is_websocket and (found is None or found.route.backend is not Backend.CHANNEL):
            raise _no_websocket(path, found)
        if found is None and backend_of(path) is Backend.OPENAI:
            raise self._unknown_route(path, scope["headers"])
        if found is None:
            raise ApiError("not_found", f"Unknown route: {method} {path[:SHOWN_PATH_CHARACTERS]}.")
        if method not in found.route.methods:
            allowed = ", ".join(found.route.methods)
            raise ApiError(
                "method_not_allowed",
                f"{path[:SHOWN_PATH_CHARACTERS]} does not support {method}: use {allowed}.",
                allow=allowed,
            )
        return found

    def _authenticate(self, route: Route, fields: Fields) -> Principal | None:
        """Return the caller, or None if the route is public. Raises ApiError."""
        if route.kind is None:
            return None
        values = _key_values(route, fields)
        for value in values or [b""]:
            principal = self._keys.authenticate(value.decode("latin-1"), route.kind)
            if principal is None:
                continue
            # Without a key, the `Host` shows that no web page of another name sends the request.
            if not any(name == b"host" for name, _ in fields) and not _has_key(values):
                raise missing_host()
            return principal
        if route.kind is Kind.WORKER:
            raise ApiError(
                "invalid_api_key",
                f"{'Wrong' if _has_key(values) else 'Missing'} worker token:"
                " use the one that `vllm-serverless token` prints.",
            )
        raise ApiError(
            "invalid_api_key", "Wrong or missing API key: send `Authorization: Bearer KEY`."
        )

    def _unknown_route(self, path: str, fields: Fields) -> ApiError:
        """Return the error for an unknown path of the OpenAI API, with the right URL if `/v1` is
        repeated.
        """
        right = without_repeated_version(path)
        if right == path or self._table.find(right) is None:
            return unknown_route(path)
        return ApiError(
            "not_found",
            f"Unknown path {path[:SHOWN_PATH_CHARACTERS]}: `/v1` is repeated."
            f" Use {base_url(fields)}{right[:SHOWN_PATH_CHARACTERS]}.",
        )


def _key_values(route: Route, fields: Fields) -> Sequence[bytes]:
    """Return the values of the header fields that have the caller's key.

    There is at most one, except in the queue API: Runpod's own documentation of that API sends two
    fields, of which one is valid. Raises ApiError if the key is ambiguous.
    """
    names = KEY_FIELDS if route.backend is Backend.OPENAI else KEY_FIELDS[:1]
    found = [field for field in fields if field[0] in names]
    if len(found) <= 1 or route.backend is Backend.QUEUE:
        return [value for _, value in found]
    sent = [name.decode().title() for name, _ in found]
    if duplicate := next((name for name in sent if sent.count(name) > 1), None):
        raise ApiError("bad_request", f"Duplicate `{duplicate}` header. Send it once.")
    # A client without a key for a field may send the field without a value.
    values = {key_of(value.decode("latin-1")): value for _, value in found}
    values.pop("", None)
    if len(values) > 1:
        headers = " and ".join(f"`{name}`" for name in sent)
        raise ApiError("bad_request", f"The headers {headers} have different keys. Send one key.")
    return list(values.values())


def _has_key(values: Sequence[bytes]) -> bool:
    return any(key_of(value.decode("latin-1")) for value in values)


def _no_websocket(path: str, found: Found | None) -> ApiError:
    """Return the error for a WebSocket handshake on a path that is not one of workers."""
    if found is None or found.route.openai is None:
        return ApiError(
            "not_found", "Unknown WebSocket path: workers connect to /v2/{endpoint}/worker."
        )
    # RFC 9110, section 15.5.22: the field names the protocol to use instead.
    return ApiError(
        "upgrade_required",
        f"{path[:SHOWN_PATH_CHARACTERS]} does not support WebSockets. Use plain HTTP:"
        f" {' or '.join(found.route.methods)}, with server-sent events for streams.",
        more=[(b"upgrade", b"HTTP/1.1"), (b"connection", b"upgrade, close")],
    )


async def _refuse_handshake(send: Any, error: ApiError, body: bytes) -> None:
    headers = [(b"content-type", b"application/json"), *error.headers()]
    status = error.row.status
    await send({"type": "websocket.http.response.start", "status": status, "headers": headers})
    await send({"type": "websocket.http.response.body", "body": body})


def _refusing_backend(scope: Any, found: Found | None) -> Backend:
    """Return the backend that renders a refusal of this request."""
    if scope["type"] == "websocket":
        return Backend.CHANNEL
    backend = backend_of(scope["path"]) if found is None else found.route.backend
    return Backend.QUEUE if backend is Backend.CHANNEL else backend
