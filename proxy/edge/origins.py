"""The origin check of a proxy without a key: cross-origin requests of web pages are refused.

A browser sends a page's request to any address that the browser can reach, including this machine's
own, and CORS only prevents the page from reading the response. With a key the check is unnecessary,
because a page does not know the key.

A browser reports the origin of a request in `Origin` and `Sec-Fetch-Site`, which no page can
change. Other clients send neither.
"""

import re
from collections.abc import Awaitable, Callable, Iterable
from typing import Any, NamedTuple, TypeAlias

from proxy.access.keys import Kind
from proxy.api.errors import ApiError
from proxy.edge.gate import Table
from proxy.edge.head import Fields, base_url

ANY_ORIGIN = "*"

# An origin is cut to this length in an error message.
SHOWN_ORIGIN_CHARACTERS = 200

# Values of `Sec-Fetch-Site` for requests of pages of another origin.
CROSS_ORIGIN_SITES = (b"cross-site", b"same-site")

DEFAULT_PORTS = {"http": 80, "https": 443}

_ORIGIN = re.compile(
    r"(?P<scheme>[a-z][a-z0-9+.-]{0,40})://"
    r"(?P<host>\[[0-9a-f:.]{2,45}\]|[a-z0-9._-]{1,253})(?::(?P<port>[0-9]{1,5}))?"
)

App: TypeAlias = Callable[[Any, Any, Any], Awaitable[None]]
"""An ASGI application."""
Refuse: TypeAlias = Callable[[Any, Any, Any, ApiError], Awaitable[None]]
"""Answers a request (scope, receive, send) with an error, in the format of the API at its path."""


class Origin(NamedTuple):
    """A web origin. The port is None if the scheme has no default port and none was given."""

    scheme: str
    host: str
    port: int | None

    def __str__(self) -> str:
        """Return the origin as a browser writes it, without the default port of the scheme."""
        is_default = self.port == DEFAULT_PORTS.get(self.scheme)
        return f"{self.scheme}://{self.host}" + ("" if is_default else f":{self.port}")


def read_origin(text: str) -> Origin | None:
    """Parse an origin; return None if the text is not one.

    Files and sandboxed pages send `null`, which is not an origin either.
    """
    found = _ORIGIN.fullmatch(text.lower())
    if found is None:
        return None
    scheme = found["scheme"]
    port = DEFAULT_PORTS.get(scheme) if found["port"] is None else int(found["port"])
    return Origin(scheme, found["host"], port)


class Origins:
    """ASGI middleware with the origin check, for a proxy without a key."""

    def __init__(self, app: App, refuse: Refuse, table: Table, named: Iterable[str]) -> None:
        """Allow pages of the proxy's own origin and of the `named` origins; `*` allows all."""
        self._app = app
        self._refuse = refuse
        self._table = table
        self._is_any = ANY_ORIGIN in named
        self._named = {origin for text in named if (origin := read_origin(text)) is not None}

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Pass the request to the application, or refuse it."""
        is_checked = scope["type"] == "http" and not self._is_any
        fault = self._fault(scope) if is_checked else None
        if fault is None:
            await self._app(scope, receive, send)
        else:
            await self._refuse(scope, receive, send, fault)

    def _fault(self, scope: Any) -> ApiError | None:
        fields: Fields = scope["headers"]
        given = [value.decode("latin-1") for name, value in fields if name == b"origin"]
        sites = {value.lower() for name, value in fields if name == b"sec-fetch-site"}
        if not given and sites.isdisjoint(CROSS_ORIGIN_SITES):
            return None
        found = self._table.find(scope["path"])
        if found is None or found.route.kind is not Kind.CLIENT:
            return None
        own = own_origin(fields)
        allowed = {own, *self._named}
        foreign = [
            text for text in given if (origin := read_origin(text)) is None or origin not in allowed
        ]
        if foreign:
            shown = foreign[0][:SHOWN_ORIGIN_CHARACTERS]
            return ApiError(
                "foreign_origin",
                f"Web pages of the origin {shown!r} may not use this proxy."
                " Allow the origin with --cors-origin, or set a key.",
            )
        if not given:
            return ApiError(
                "foreign_origin",
                "Web pages of other sites may not use this proxy:"
                " the request has `Sec-Fetch-Site` and no `Origin`."
                " Send it with CORS from an origin that --cors-origin allows, or set a key.",
            )
        return None


def own_origin(fields: Fields) -> Origin | None:
    """Return the origin that a request was sent to; None if its `Host` field is missing."""
    return read_origin(base_url(fields))
