"""The gate: an ASGI application in front of all others. Is there such a route, may this caller take it; who answers.

Nothing behind it decides about access. A room that is entered finds the caller in `scope["state"]["principal"]`.
"""

from collections.abc import Mapping
from typing import Any, Protocol

from proxy.access.keys import Keys, Kind, Principal
from proxy.api.errors import ApiError
from proxy.api.openai.routes import unknown_route
from proxy.edge.head import Fields
from proxy.edge.routes import WEBSOCKET, Backend, Route, Table, backend_of

WORKERS = (Backend.STOCK, Backend.CHANNEL)
PATH_SHOWN = 200  # characters of a path in an error


class BackendApp(Protocol):
    """An ASGI application behind the gate, which also says no in its own words."""

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None: ...

    async def refuse(self, scope: Any, receive: Any, send: Any, error: ApiError) -> None:
        """Answer a request that is not let in."""
        ...


class WorkerApp(Protocol):
    """A channel of workers, which knows nothing of this API's errors."""

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None: ...

    async def refuse(self, scope: Any, receive: Any, send: Any, status: int, sentence: str) -> None:
        """Answer a request that is not let in."""
        ...


class WorkerBackend:
    """A channel of workers as a room."""

    def __init__(self, channel: WorkerApp) -> None:
        self._channel = channel

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        await self._channel(scope, receive, send)

    async def refuse(self, scope: Any, receive: Any, send: Any, error: ApiError) -> None:
        await self._channel.refuse(scope, receive, send, error.row.status, str(error))


class Gate:
    """Lets requests in."""

    def __init__(self, keys: Keys, table: Table, backends: Mapping[Backend, BackendApp]) -> None:
        self._keys, self._table, self._backends = keys, table, backends

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """One request."""
        try:
            route = self._find(scope)
            scope["state"]["principal"] = self._admit(route, scope["headers"])
        except ApiError as error:
            await self.refuse(scope, receive, send, error)
            return
        await self._backends[route.backend](scope, receive, send)

    async def refuse(self, scope: Any, receive: Any, send: Any, error: ApiError) -> None:
        """Answer a request with an error, in the dialect of its path."""
        await self._backends[self._refusing_backend(scope)].refuse(scope, receive, send, error)

    def is_worker(self, path: str, fields: Fields) -> bool:
        """Whether this is a request of a worker with its token: for those there is always a place."""
        route = self._table.find(path)
        if route is None or route.backend not in WORKERS:
            return False
        try:
            return self._admit(route, fields) is not None
        except ApiError:
            return False

    def _find(self, scope: Any) -> Route:
        is_websocket, path = scope["type"] == "websocket", scope["path"]
        method = WEBSOCKET if is_websocket else scope["method"]
        route = self._table.find(path)
        if is_websocket and (route is None or route.backend is not Backend.CHANNEL):
            raise ApiError("not_found", "workers dial /v2/{endpoint}/worker")
        if route is None and backend_of(path) is Backend.OPENAI:
            raise unknown_route(path)
        if route is None:
            raise ApiError("not_found", f"There is no {method} {path[:PATH_SHOWN]} here.")
        if method not in route.methods:
            allowed = ", ".join(route.methods)
            raise ApiError(
                "method_not_allowed",
                f"{path[:PATH_SHOWN]} takes {allowed}, not {method}.",
                allow=allowed,
            )
        return route

    def _refusing_backend(self, scope: Any) -> Backend:
        """Who says no: the room whose path it is, in the protocol that was spoken."""
        if scope["type"] == "websocket":
            return Backend.CHANNEL
        route = self._table.find(scope["path"])
        room = backend_of(scope["path"]) if route is None else route.backend
        return Backend.QUEUE if room is Backend.CHANNEL else room

    def _admit(self, route: Route, fields: Fields) -> Principal | None:
        """Who calls, or `ApiError`. None: nobody asks."""
        if route.kind is None:
            return None
        given = [value for name, value in fields if name == b"authorization"]
        if not given and route.backend is Backend.OPENAI:
            given = [value for name, value in fields if name == b"x-api-key"]  # Anthropic's
        if (
            len(given) > 1 and route.backend is not Backend.QUEUE
        ):  # whose own documentation sends two, of which one is right
            raise ApiError("bad_request", "Send one `Authorization` field.")
        for value in given or [b""]:
            principal = self._keys.authenticate(value.decode("latin-1"), route.kind)
            if principal is not None:
                return principal
        if route.kind is Kind.WORKER:
            raise ApiError(
                "invalid_api_key", "wrong worker token: it is what `vllm-serverless token` prints"
            )
        raise ApiError(
            "invalid_api_key", "Wrong or missing API key: send `Authorization: Bearer KEY`."
        )
