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
from collections.abc import Awaitable, Callable, MutableMapping
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any, NoReturn, Self, TypeAlias

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


Offer: TypeAlias = Callable[[Head | bytes], bool]
"""Take a piece of a response without waiting; return False to have it yielded instead."""


class CutShortError(Exception):
    """The app ended before its response was complete. The cause is the app's exception, if any."""


class Exchange:
    """A request to an app and its response: an asynchronous iterator of one head, then the body.

    Pieces that the app sent in one turn of the event loop are joined, unless they are large. At the
    end of the turn they are passed to `offer`, without a switch to the reader's task. The iterator
    yields only the pieces that `offer` does not take; until the reader asks for the next piece
    after them, nothing more is offered. Without `offer` it yields all of them.

    The iterator raises `CutShortError` if the response is not complete. The reader must close it:
    `aclose` ends the request in the app.
    """

    def __init__(
        self,
        app: App,
        request: Request,
        authorization: str = "",
        disconnect_seconds: float = DISCONNECT_TIMEOUT_SECONDS,
        offer: Offer | None = None,
    ) -> None:
        self._path = request.path
        self._disconnect_seconds = disconnect_seconds
        self._offer = offer
        self._request: bytes | None = request.body
        self._scope = _scope(request, authorization)
        self._call_soon = asyncio.get_running_loop().call_soon
        # What the app has sent since the last `_flush`.
        self._head: Head | None = None
        self._unread: list[bytes] = []
        self._unread_bytes = 0
        self._is_whole = False
        # Pieces for the iterator, and whether the reader still works on pieces from it.
        self._refused: list[Head | bytes] = []
        self._is_reading = False
        # True while `_flush` is scheduled, and while it runs.
        self._is_scheduled = False
        self._is_flushing = False
        # Set when the reader's task has to look for pieces, or for the end.
        self._changed = asyncio.Event()
        # Set while the app may send more.
        self._may_send = asyncio.Event()
        self._may_send.set()
        # Set when the reader has disconnected.
        self._disconnected = asyncio.Event()
        self._task = asyncio.ensure_future(app(self._scope, self._receive, self._send))
        self._task.add_done_callback(self._note_end)

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Head | bytes:
        while not self._refused:
            is_over = self._is_whole or self._task.done()
            self._changed.clear()
            self._is_reading = False
            self._flush()
            if self._refused:
                break
            if is_over:
                await self._finish()
            await self._changed.wait()
        if self._is_flushing:
            raise RuntimeError("a piece was not passed on; the log has the exception of `offer`")
        return self._refused.pop(0)

    async def aclose(self) -> None:
        """Disconnect, and wait until the app has released the request.

        After the timeout the app is cancelled. An app that ignores this too is awaited without
        limit, so that its slot is not given to another job. The proxy detects such a worker.
        """
        self._disconnected.set()
        self._may_send.set()
        if (on_disconnect := self._scope[ON_DISCONNECT]) is not None:
            on_disconnect()
        if self._task.done():
            return
        seconds = self._disconnect_seconds
        try:
            await asyncio.wait({self._task}, timeout=seconds)
        finally:
            if not self._task.done():
                log = structlog.get_logger()
                log.warning("asgi.app_did_not_end", path=self._path, seconds=seconds)
                self._task.cancel()
        await asyncio.wait({self._task})

    async def _finish(self) -> NoReturn:
        """End the iteration, after the app has ended."""
        await self.aclose()
        if self._is_whole:
            raise StopAsyncIteration
        failure = None if self._task.cancelled() else self._task.exception()
        raise CutShortError(f"the engine's response to {self._path} is incomplete") from failure

    async def _receive(self) -> Message:
        if self._request is not None:
            body = self._request
            self._request = None
            return {"type": "http.request", "body": body, "more_body": False}
        await self._disconnected.wait()
        return {"type": "http.disconnect"}

    async def _send(self, message: Message) -> None:
        if self._is_whole or self._disconnected.is_set():
            return
        if message["type"] == "http.response.body":
            if body := message.get("body", b""):
                self._unread.append(bytes(body))
                self._unread_bytes += len(body)
            self._is_whole = not message.get("more_body", False)
        elif message["type"] == "http.response.start":
            self._head = _head(message)
        if self._is_whole or self._head is not None or self._offer is None:
            # The reader's task flushes. At the head it does so because a short response ends in the
            # same turn, and wakes it in any case.
            self._changed.set()
        elif not self._is_scheduled:
            self._is_scheduled = True
            self._call_soon(self._flush)
        if self._unread_bytes > UNREAD_HIGH_BYTES and not self._is_whole:
            self._may_send.clear()
            await self._may_send.wait()

    def _flush(self) -> None:
        """Offer what the app has sent; leave to the iterator what is not taken."""
        self._is_scheduled = False
        if self._is_reading or self._disconnected.is_set():
            return
        pieces = self._pop()
        self._is_flushing = True
        try:
            while pieces and self._offer is not None and self._offer(pieces[0]):
                del pieces[0]
            self._is_flushing = False
        finally:
            self._refused = pieces
            if pieces:
                self._is_reading = True
                self._changed.set()

    def _pop(self) -> list[Head | bytes]:
        """Return what the app has sent since the last call, and let it send more."""
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

    def _note_end(self, task: "asyncio.Future[None]") -> None:
        self._changed.set()
        if not task.cancelled():
            # asyncio would log an error that nothing retrieves, because the reader has left.
            task.exception()


async def fetch(app: App, request: Request, authorization: str = "") -> tuple[int, bytes]:
    """Return the status and the whole body of the app's response. Raises `CutShortError`."""
    status = 0
    body = bytearray()
    async with aclosing(Exchange(app, request, authorization)) as answer:
        async for piece in answer:
            if isinstance(piece, Head):
                status = piece.status
            else:
                body += piece
    return status, bytes(body)


def _head(message: Message) -> Head:
    headers = list(message.get("headers", ()))
    content_type = dict(headers).get(b"content-type", b"").decode("latin-1")
    # Most responses have no such field.
    crosses = any(name in TO_CLIENT or name.startswith(RATE_LIMITS) for name, _ in headers)
    return Head(int(message["status"]), content_type, for_client(headers) if crosses else ())


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
