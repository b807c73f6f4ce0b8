"""Call an ASGI app in this process and stream its answer.

The rules, each found the hard way with vLLM's app:
- `spec_version` is 2.3. With 2.4 Starlette stops listening for the disconnect, and a cancelled stream runs to its end.
- `receive` gives the request once, then waits until the caller leaves, then gives `http.disconnect`.
- `send` drops silently once the caller has left; before that it waits while too much is unread.
- To cancel: leave first, then await the app. Cancelling its task at once orphans requests in the engine.
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, MutableMapping
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any, TypeAlias

import structlog

Message: TypeAlias = MutableMapping[str, Any]
Scope: TypeAlias = MutableMapping[str, Any]
Receive: TypeAlias = Callable[[], Awaitable[Message]]
Send: TypeAlias = Callable[[Message], Awaitable[None]]
App: TypeAlias = Callable[[Scope, Receive, Send], Awaitable[None]]

UNREAD_BYTES = 64 * 1024  # the app's send waits above this: the engine's client is as slow as ours
LEAVE_SECONDS = (
    10.0  # how long an app may take to notice that the caller left; a healthy vLLM needs 30 ms
)
CALLER = ("127.0.0.1", 0)


@dataclass(frozen=True, slots=True)
class Request:
    """One HTTP request for the engine's app. `path` may end with a query."""

    method: str
    path: str
    content_type: str = ""
    body: bytes = b""


@dataclass(frozen=True, slots=True)
class Head:
    """Status and Content-Type of the answer."""

    status: int
    content_type: str


class CutShortError(Exception):
    """The app ended before its answer was whole; the cause is the app's own exception, if it raised one."""


async def call(
    app: App, request: Request, authorization: str = "", leave_seconds: float = LEAVE_SECONDS
) -> AsyncIterator[Head | bytes]:
    """The app's answer: one head, then its body. What the app sent in one loop turn is joined, unless it is large.

    Ends normally only if the answer is whole, else with `CutShortError`. Closing this iterator, or cancelling the task
    in it, ends the request in the app.
    """
    exchange = _Exchange(request, authorization)
    task = asyncio.ensure_future(app(exchange.scope, exchange.receive, exchange.send))
    task.add_done_callback(lambda _: exchange.news.set())
    try:
        while not exchange.is_whole and not task.done():
            await exchange.news.wait()
            for piece in exchange.take():
                yield piece
        for piece in exchange.take():
            yield piece
    finally:
        exchange.leave()
        await _let_end(task, request.path, leave_seconds)
    if not exchange.is_whole:
        raise CutShortError(f"the engine's answer to {request.path} broke off") from _failure(task)


async def fetch(app: App, request: Request, authorization: str = "") -> tuple[int, bytes]:
    """The whole answer at once: status and body."""
    status, body = 0, bytearray()
    async with aclosing(call(app, request, authorization)) as answer:  # type: ignore[type-var]
        async for piece in answer:
            if isinstance(piece, Head):
                status = piece.status
            else:
                body += piece
    return status, bytes(body)


class _Exchange:
    """One request and what its app has sent so far."""

    def __init__(self, request: Request, authorization: str) -> None:
        self.scope = _scope(request, authorization)
        self.news = asyncio.Event()  # the reader has something to take
        self.is_whole = False
        self._request: bytes | None = request.body
        self._head: Head | None = None
        self._unread: list[bytes] = []
        self._unread_bytes = 0
        self._room = asyncio.Event()  # the app may send more
        self._room.set()
        self._left = asyncio.Event()  # the reader is gone

    async def receive(self) -> Message:
        if self._request is not None:
            body, self._request = self._request, None
            return {"type": "http.request", "body": body, "more_body": False}
        await self._left.wait()
        return {"type": "http.disconnect"}

    async def send(self, message: Message) -> None:
        if self._left.is_set() or self.is_whole:
            return
        if message["type"] == "http.response.start":
            headers = dict(message.get("headers", ()))
            self._head = Head(
                int(message["status"]), headers.get(b"content-type", b"").decode("latin-1")
            )
        elif message["type"] == "http.response.body":
            body = message.get("body", b"")
            if body:
                self._unread.append(bytes(body))
                self._unread_bytes += len(body)
            self.is_whole = not message.get("more_body", False)
        self.news.set()
        if self._unread_bytes > UNREAD_BYTES and not self.is_whole:
            self._room.clear()
            await self._room.wait()

    def take(self) -> list[Head | bytes]:
        """What has come since the last call."""
        self.news.clear()
        pieces: list[Head | bytes] = []
        if self._head is not None:
            pieces.append(self._head)
            self._head = None
        if self._unread:
            if (
                self._unread_bytes > UNREAD_BYTES
            ):  # a copy of what is large would cost as much again
                pieces += self._unread
            else:
                pieces.append(self._unread[0] if len(self._unread) == 1 else b"".join(self._unread))
            self._unread.clear()
            self._unread_bytes = 0
            self._room.set()
        return pieces

    def leave(self) -> None:
        """The reader takes no more."""
        self._left.set()
        self._room.set()


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
        "client": CALLER,
        "server": ("127.0.0.1", 80),
        "state": {},
    }


async def _let_end(task: "asyncio.Future[None]", path: str, seconds: float) -> None:
    """Wait until the app has let go of the request; by force if it does not. One that resists that too is waited for:
    the proxy does with the worker what it can, and gives its slot to nobody.
    """
    try:
        await asyncio.wait({task}, timeout=seconds)
    finally:
        if not task.done():
            structlog.get_logger().warning("asgi.app_did_not_end", path=path, seconds=seconds)
            task.cancel()
    await asyncio.wait({task})


def _failure(task: "asyncio.Future[None]") -> BaseException | None:
    return None if not task.done() or task.cancelled() else task.exception()
