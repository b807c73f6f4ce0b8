"""The gate: an ASGI application in front of the backends that does routing and authentication.

It finds the route of a request, authenticates the caller and calls the route's backend. Nothing
behind it decides about access. A backend receives the results in the scope (`api.scope`).
"""

from collections.abc import Mapping
from typing import Any, Protocol

from proxy.access.keys import Keys, Kind, Principal
from proxy.api.errors import ApiError
from proxy.api.openai.routes import unknown_route
from proxy.api.scope import Routing, set_routing
from proxy.edge.head import Fields
from proxy.edge.routes import WEBSOCKET, Backend, Found, Route, Table, backend_of

WORKER_BACKENDS = (Backend.STOCK, Backend.CHANNEL)

# A path is cut to this length in an error message.
SHOWN_PATH_CHARACTERS = 200


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
        set_routing(scope, Routing(parameters, route.openai, principal))
        await self._backends[route.backend](scope, receive, send)

    async def refuse(self, scope: Any, receive: Any, send: Any, error: ApiError) -> None:
        """Answer a request with an error, in the format of the API at its path."""
        found = self._table.find(scope["path"])
        if found is not None:
            set_routing(scope, Routing(found.parameters, found.route.openai))
        backend = self._backends[_refusing_backend(scope, found)]
        await backend.refuse(scope, receive, send, error)

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
            raise ApiError(
                "not_found", "Unknown WebSocket path: workers connect to /v2/{endpoint}/worker."
            )
        if found is None and backend_of(path) is Backend.OPENAI:
            raise unknown_route(path)
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
        credentials = [value for name, value in fields if name == b"authorization"]
        if not credentials and route.backend is Backend.OPENAI:
            # Clients of Anthropic's API send their key in this field.
            credentials = [value for name, value in fields if name == b"x-api-key"]
        # Runpod's own documentation of the queue API sends two fields, of which one is valid.
        if len(credentials) > 1 and route.backend is not Backend.QUEUE:
            raise ApiError("bad_request", "Duplicate `Authorization` header. Send it once.")
        for value in credentials or [b""]:
            principal = self._keys.authenticate(value.decode("latin-1"), route.kind)
            if principal is not None:
                return principal
        if route.kind is Kind.WORKER:
            raise ApiError(
                "invalid_api_key",
                "Wrong or missing worker token: use the one that `vllm-serverless token` prints.",
            )
        raise ApiError(
            "invalid_api_key", "Wrong or missing API key: send `Authorization: Bearer KEY`."
        )


def _refusing_backend(scope: Any, found: Found | None) -> Backend:
    """Return the backend that renders a refusal of this request."""
    if scope["type"] == "websocket":
        return Backend.CHANNEL
    backend = backend_of(scope["path"]) if found is None else found.route.backend
    return Backend.QUEUE if backend is Backend.CHANNEL else backend
