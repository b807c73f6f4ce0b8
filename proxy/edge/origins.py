"""The origin check of a proxy without a key: requests of web pages of other origins are refused, whatever they ask.

A browser sends a page's request to any address that the browser can reach, this machine's own included, and CORS only
keeps the page from reading the answer. With a key there is nothing to do: a page does not know it.

A browser says where a request comes from in `Origin` and `Sec-Fetch-Site`, which no page can change. Other clients send
neither.
"""

import re
from collections.abc import Awaitable, Callable, Iterable
from typing import Any, NamedTuple, TypeAlias

from proxy.access.keys import Kind
from proxy.api.errors import ApiError
from proxy.edge.head import Fields
from proxy.edge.routes import Table

ANY = "*"
ORIGIN_SHOWN = 200  # characters of an origin in an error
ELSEWHERE = (b"cross-site", b"same-site")
DEFAULT_PORTS = {"http": 80, "https": 443}

_ORIGIN = re.compile(
    r"(?P<scheme>[a-z][a-z0-9+.-]{0,40})://(?P<host>\[[0-9a-f:.]{2,45}\]|[a-z0-9._-]{1,253})(?::(?P<port>[0-9]{1,5}))?"
)

App: TypeAlias = Callable[[Any, Any, Any], Awaitable[None]]
"""An ASGI application."""
Refuse: TypeAlias = Callable[[Any, Any, Any, ApiError], Awaitable[None]]
"""Answers a request (scope, receive, send) with an error in the dialect of its path."""


class Origin(NamedTuple):
    """A web origin. The port of a scheme without a default one may be None."""

    scheme: str
    host: str
    port: int | None

    def __str__(self) -> str:
        """Return it as a browser writes it: without the port that the scheme implies."""
        is_default = self.port == DEFAULT_PORTS.get(self.scheme)  # None, where the scheme has none
        return f"{self.scheme}://{self.host}" + ("" if is_default else f":{self.port}")


def read_origin(text: str) -> Origin | None:
    """Return the origin in a text, or None if it is not one, as `null` is, which files and sandboxed pages send."""
    found = _ORIGIN.fullmatch(text.lower())
    if found is None:
        return None
    scheme = found["scheme"]
    port = DEFAULT_PORTS.get(scheme) if found["port"] is None else int(found["port"])
    return Origin(scheme, found["host"], port)


class Origins:
    """An ASGI application in front of another one, for a proxy without a key."""

    def __init__(self, app: App, refuse: Refuse, table: Table, named: Iterable[str]) -> None:
        """Let in pages of this proxy's own origin and of the `named` ones, all of them if one is `*`."""
        self._app, self._refuse, self._table = app, refuse, table
        self._is_any = ANY in named
        self._named = {origin for text in named if (origin := read_origin(text)) is not None}

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Pass a request on, or refuse it."""
        fault = self._fault(scope) if scope["type"] == "http" and not self._is_any else None
        if fault is None:
            await self._app(scope, receive, send)
        else:
            await self._refuse(scope, receive, send, fault)

    def _fault(self, scope: Any) -> ApiError | None:
        fields: Fields = scope["headers"]
        given = [value.decode("latin-1") for name, value in fields if name == b"origin"]
        sites = {value.lower() for name, value in fields if name == b"sec-fetch-site"}
        if not given and sites.isdisjoint(ELSEWHERE):
            return None
        route = self._table.find(scope["path"])
        if route is None or route.kind is not Kind.CLIENT:
            return None
        own = own_origin(fields)
        foreign = [
            text
            for text in given
            if (origin := read_origin(text)) is None or origin not in {own, *self._named}
        ]
        if foreign:
            shown = foreign[0][:ORIGIN_SHOWN]
            return ApiError(
                "foreign_origin",
                f"Web pages of the origin {shown!r} may not use this proxy: allow it with --cors-origin, or set a key.",
            )
        if not given:
            return ApiError(
                "foreign_origin",
                "Web pages of other sites may not use this proxy: the request has `Sec-Fetch-Site` and no `Origin`. "
                "Send it with CORS from an origin that --cors-origin allows, or set a key.",
            )
        return None


def own_origin(fields: Fields) -> Origin | None:
    """Return the origin that a request was sent to, by its `Host`.

    The scheme is `http`, unless a server in front, which has the TLS, says otherwise in `X-Forwarded-Proto`. A page
    cannot send that: it would need a preflight request, which is refused.
    """
    seen = dict(reversed(fields))
    scheme = seen.get(b"x-forwarded-proto", b"http").partition(b",")[0].strip()
    return read_origin(f"{scheme.decode('latin-1')}://{seen.get(b'host', b'').decode('latin-1')}")
