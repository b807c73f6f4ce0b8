"""Responses to clients of HTTP/1.0, which knows neither chunks nor `100 Continue`.

uvicorn sends both to every client. A client that cannot read chunks finds their sizes between the
events of a stream. RFC 9112, section 6.1: the body of such a response ends with its connection;
uvicorn closes the connection after every response to HTTP/1.0.
"""

from collections.abc import Awaitable, Callable
from typing import Any, TypeAlias

from uvicorn.protocols.http.httptools_impl import RequestResponseCycle

App: TypeAlias = Callable[[Any, Any, Any], Awaitable[None]]
"""An ASGI application."""


def without_chunks(cycle: RequestResponseCycle, app: App) -> App:
    """Return an application whose response this cycle writes as HTTP/1.0 allows."""
    # RFC 9110, section 10.1.1: the expectation of an HTTP/1.0 client is ignored.
    cycle.waiting_for_100_continue = False
    has_length = False

    async def serve(scope: Any, receive: Any, send: Any) -> None:
        async def send_plain(message: Any) -> None:
            nonlocal has_length
            if message["type"] == "http.response.start":
                names = {name.lower() for name, _ in message.get("headers", ())}
                has_length = b"content-length" in names
                if not has_length:
                    cycle.chunked_encoding = False
            elif not has_length:
                # The cycle raises an exception if the body is longer or shorter than expected.
                cycle.expected_content_length = len(message.get("body", b""))
            await send(message)

        await app(scope, receive, send_plain)

    return serve
