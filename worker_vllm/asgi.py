"""Call an ASGI app in this process and stream its response.

The rules that vLLM's app requires:
- `spec_version` is 2.3. With 2.4 Starlette does not listen for the disconnect, and a cancelled
  stream runs to its end.
- `receive` returns the request once, then waits until the caller disconnects, then returns
  `http.disconnect`.
- `send` discards its data after the caller has disconnected. Before that it waits while too many
  bytes are unread (back-pressure).
- To cancel: disconnect first, then await the app. Cancelling its task at once orphans requests in
  the engine. An app of this package may leave a function in the scope that is called at the
  disconnect, under the key `ON_DISCONNECT`, instead of waiting in `receive`.
"""

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, MutableMapping
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any, TypeAlias

import structlog

from proxy.wire.fields import RATE_LIMITS, TO_CLIENT, Fields, for_client

Message: TypeAlias = MutableMapping[str, Any]
Scope: TypeAlias = MutableMapping[str, Any]
Receive: TypeAlias = Callable[[], Awaitable[Message]]
Send: TypeAlias = Callable[[Message], Awaitable[None]]
App: TypeAlias = Callable[[Scope, Receive, Send], Awaitable[None]]

# High watermark of the bytes that the reader has not taken. Above it the app's `send` waits.
UNREAD_HIGH_BYTES = 64 * 1024
# Time that an app may take to end after the disconnect. A healthy vLLM needs 30 ms.
DISCONNECT_TIMEOUT_SECONDS = 10.0
CLIENT_ADDRESS = ("127.0.0.1", 0)
# The key of the scope for the app's function.
ON_DISCONNECT = "worker_vllm.on_disconnect"


@dataclass(frozen=True, slots=True)
class Request:
    """An HTTP request for the engine's app. `path` may end with a query string."""

    method: str
    path: str
    content_type: str = ""
    body: bytes = b""
    # Further header fields, with names in lower case.
    fields: Fields = ()


@dataclass(frozen=True, slots=True)
class Head:
    """Status code, Content-Type and the header fields of a response that its client receives."""

    status: int
    content_type: str
    fields: Fields = ()


class CutShortError(Exception):
    """The app ended before its response was complete. The cause is the app's exception, if any."""


async def call(
    app: App,
    request: Request,
    authorization: str = "",
    disconnect_seconds: float = DISCONNECT_TIMEOUT_SECONDS,
) -> AsyncGenerator[Head | bytes, None]:
    """Yield the app's response: one head, then its body.

    Pieces that the app sent in one turn of the event loop are joined, unless they are large.
    Raises `CutShortError` if the response is not complete. Closing this generator, or cancelling
    the task in it, ends the request in the app.
    """
    exchange = _Exchange(request, authorization)
    task = asyncio.ensure_future(app(exchange.scope, exchange.receive, exchange.send))
    task.add_done_callback(lambda _: exchange.changed.set())
    # asyncio would log an error that nothing retrieves, because the reader has left before it.
    task.add_done_callback(_failure)
    try:
        while not exchange.is_whole and not task.done():
            await exchange.changed.wait()
            for piece in exchange.pop():
                yield piece
        for piece in exchange.pop():
            yield piece
    finally:
        exchange.disconnect()
        await _wait_for_end(task, request.path, disconnect_seconds)
    if not exchange.is_whole:
        raise CutShortError(f"the engine's response to {request.path} is incomplete") from _failure(
            task
        )


async def fetch(app: App, request: Request, authorization: str = "") -> tuple[int, bytes]:
    """Return the status and the whole body of the app's response. Raises `CutShortError`."""
    status = 0
    body = bytearray()
    async with aclosing(call(app, request, authorization)) as answer:
        async for piece in answer:
            if isinstance(piece, Head):
                status = piece.status
            else:
                body += piece
    return status, bytes(body)


class _Exchange:
    """A request, and the part of its response that the reader has not taken yet."""

    def __init__(self, request: Request, authorization: str) -> None:
        self.scope = _scope(request, authorization)
        # Set while there may be something to take.
        self.changed = asyncio.Event()
        self.is_whole = False
        self._request: bytes | None = request.body
        self._head: Head | None = None
        self._unread: list[bytes] = []
        self._unread_bytes = 0
        # Set while the app may send more.
        self._may_send = asyncio.Event()
        self._may_send.set()
        # Set when the reader has disconnected.
        self._disconnected = asyncio.Event()

    async def receive(self) -> Message:
        if self._request is not None:
            body = self._request
            self._request = None
            return {"type": "http.request", "body": body, "more_body": False}
        await self._disconnected.wait()
        return {"type": "http.disconnect"}

    async def send(self, message: Message) -> None:
        if self._disconnected.is_set() or self.is_whole:
            return
        if message["type"] == "http.response.start":
            headers = list(message.get("headers", ()))
            content_type = dict(headers).get(b"content-type", b"").decode("latin-1")
            # Most responses have no such field.
            crosses = any(name in TO_CLIENT or name.startswith(RATE_LIMITS) for name, _ in headers)
            fields = for_client(headers) if crosses else ()
            self._head = Head(int(message["status"]), content_type, fields)
        elif message["type"] == "http.response.body":
            body = message.get("body", b"")
            if body:
                self._unread.append(bytes(body))
                self._unread_bytes += len(body)
            self.is_whole = not message.get("more_body", False)
        self.changed.set()
        if self._unread_bytes > UNREAD_HIGH_BYTES and not self.is_whole:
            self._may_send.clear()
            await self._may_send.wait()

    def pop(self) -> list[Head | bytes]:
        """Return what the app has sent since the last call."""
        self.changed.clear()
        pieces: list[Head | bytes] = []
        if self._head is not None:
            pieces.append(self._head)
            self._head = None
        if self._unread:
            # Joining makes a copy, which large pieces are spared.
            if len(self._unread) == 1 or self._unread_bytes > UNREAD_HIGH_BYTES:
                pieces += self._unread
            else:
                pieces.append(b"".join(self._unread))
            self._unread.clear()
            self._unread_bytes = 0
            self._may_send.set()
        return pieces

    def disconnect(self) -> None:
        """Tell the app that the reader has left, and release it if it waits in `send`."""
        self._disconnected.set()
        self._may_send.set()
        if (on_disconnect := self.scope[ON_DISCONNECT]) is not None:
            on_disconnect()


def _scope(request: Request, authorization: str) -> Scope:
    path, _, query = request.path.partition("?")
    headers = [
        (b"host", b"127.0.0.1"),
        (b"accept", b"*/*"),
        (b"content-length", b"%d" % len(request.body)),
    ]
    if request.content_type:
        headers.append((b"content-type", request.content_type.encode("latin-1", "replace")))
    if authorization:
        headers.append((b"authorization", authorization.encode("latin-1", "replace")))
    headers += request.fields
    return {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": "2.3"},
        "http_version": "1.1",
        "method": request.method,
        "scheme": "http",
        "path": path,
        "raw_path": path.encode("utf-8"),
        "query_string": query.encode("utf-8"),
        "root_path": "",
        "headers": headers,
        "client": CLIENT_ADDRESS,
        "server": ("127.0.0.1", 80),
        "state": {},
        ON_DISCONNECT: None,
    }


async def _wait_for_end(task: "asyncio.Future[None]", path: str, seconds: float) -> None:
    """Wait until the app has released the request; cancel it after `seconds`.

    An app that ignores the cancellation too is awaited without limit, so that its slot is not
    given to another job. The proxy detects such a worker.
    """
    if task.done():
        return
    try:
        await asyncio.wait({task}, timeout=seconds)
    finally:
        if not task.done():
            structlog.get_logger().warning("asgi.app_did_not_end", path=path, seconds=seconds)
            task.cancel()
    await asyncio.wait({task})


def _failure(task: "asyncio.Future[None]") -> BaseException | None:
    return None if not task.done() or task.cancelled() else task.exception()
