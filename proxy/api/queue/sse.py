"""The operation `stream` as server-sent events: one event per element, then one for the job's end.

`id` is the cursor after an element (`ATTEMPT-POSITION`), so that a client that reconnects with
`Last-Event-ID` misses nothing. Output is read, not consumed. If the attempt was lost before any of
its output was sent, a comment says so, and the stream begins again with the next attempt. The last
event is `event: end` with the job's status.
"""

import asyncio
from collections.abc import Callable
from typing import Any

import msgspec
import structlog
from sse_starlette import ServerSentEvent

from proxy.api.errors import ApiError
from proxy.api.http import ClientGoneError, abort_of
from proxy.api.queue.request import RequestContext, parse_cursor
from proxy.api.queue.response import split
from proxy.jobs.model import EVENT_STREAM, Cursor
from proxy.service.job_view import JobView, OutputPage, ReadLimits
from proxy.service.mailbox import STALL_SECONDS
from proxy.store.errors import StoreError

log = structlog.get_logger()

# After this time without output, the client receives a comment.
PING_SECONDS = 15.0
PING = b": ping\n\n"
# A page is read without a reservation of memory. It is small, because thousands of clients may read
# slowly.
PAGE_MAX_BYTES = 16 * 1024
# A larger element is in memory twice: first as element and event, then as event and in the write
# buffer.
COPIES = 2

HEADERS = (
    (b"content-type", f"{EVENT_STREAM}; charset=utf-8".encode()),
    (b"cache-control", b"no-cache, no-transform"),
    (b"connection", b"keep-alive"),
    (b"x-accel-buffering", b"no"),
)


def wants_events(accept: str) -> bool:
    """Return True if the `Accept` header names event streams; `*/*` selects JSON."""
    return any(part.partition(";")[0].strip().lower() == EVENT_STREAM for part in accept.split(","))


def start(last_event_id: str | None, after: Cursor) -> Cursor:
    """Return the cursor to start at: `Last-Event-ID`, or `?after=` without it.

    Raises `ApiError` if `Last-Event-ID` is not a cursor.
    """
    if not last_event_id:
        return after
    cursor = parse_cursor(last_event_id)
    if cursor is None:
        raise ApiError(
            "invalid_body", "`Last-Event-ID` must be the `id` of an event of this stream."
        )
    return cursor


class EventStream:
    """The response, as an ASGI application.

    Memory for elements that exceed a page is reserved before they are read, and given back when
    the client has read them. The connection is closed if the client stops reading.
    """

    def __init__(
        self,
        view: JobView,
        context: RequestContext,
        job_id: str,
        after: Cursor,
        leave: Callable[[], None],
    ) -> None:
        """Create the response with the elements after a cursor. It ends with a call of `leave`."""
        self.raw_headers = list(HEADERS)
        self._view = view
        self._context = context
        self._share = context.answer
        self._job_id = job_id
        self._after = after
        self._leave = leave
        self._send: Any = None

    async def __call__(self, scope: Any, _: Any, send: Any) -> None:
        self._send = send
        headers = self.raw_headers
        try:
            await send({"type": "http.response.start", "status": 200, "headers": headers})
            await self._context.unless_gone(self._write_events())
            await self._write(b"", more=False)
        except ClientGoneError:
            pass
        except TimeoutError:
            # A normal end would wait until the client has read the write buffer.
            abort_of(scope)()
        finally:
            self._share.give_back()
            self._leave()

    async def _write_events(self) -> None:
        view, context = self._view, self._context
        limits = ReadLimits(PAGE_MAX_BYTES, False, self._reserve)
        place = (context.endpoint, context.owner, self._job_id)
        try:
            while page := await view.read(*place, self._after, PING_SECONDS, limits):
                job = page.job
                is_empty = not page.elements
                self._after = page.cursor
                chunks = _chunks(page)
                # No variable keeps output in memory while its client reads.
                del page
                while chunks:
                    await self._write(chunks.pop(0))
                if self._share.held:
                    # Waits until the write buffer is below its limit.
                    await self._write(b"")
                    self._share.give_back()
                if is_empty and job.is_terminal:
                    end = msgspec.json.encode({"status": job.status})
                    await self._write(_event(end, event="end"))
                    return
                if view.is_over:
                    return
                if is_empty:
                    await self._write(PING)
                # The writes above do not wait for a fast client, so other tasks get a turn here.
                await asyncio.sleep(0)
        except StoreError as error:
            # Without the event `end`, the client connects again and continues at its last event.
            log.warning("stream.cut", job=self._job_id, why=str(error))

    async def _write(self, data: bytes, *, more: bool = True) -> None:
        """Write data when the write buffer is below its limit. Raises TimeoutError if the client
        reads nothing for `STALL_SECONDS`.
        """
        async with asyncio.timeout(STALL_SECONDS):
            await self._send({"type": "http.response.body", "body": data, "more_body": more})

    async def _reserve(self, size: int) -> None:
        """Reserve memory for an element of `size` bytes; the client receives comments meanwhile."""
        waiting = asyncio.ensure_future(self._share.wait_to(COPIES * size))
        try:
            while not (await asyncio.wait({waiting}, timeout=PING_SECONDS))[0]:
                await self._write(PING)
        finally:
            waiting.cancel()


def _chunks(page: OutputPage) -> list[bytes]:
    """Return the events of a page: in one chunk, or one by one if its element was split."""
    attempt = page.cursor.attempt
    restarted = f": restarted attempt={attempt}\n\n".encode() if page.has_restarted else b""
    first = page.cursor.position - len(page.elements)
    if len(page.elements) == 1:
        *parts, last = split(page.elements[0])
        events = [*map(_event, parts), _event(last, Cursor(attempt, first + 1))]
        return [restarted, *events] if restarted else events
    events = [restarted]
    for position, element in enumerate(page.elements, first + 1):
        events.append(_event(element, Cursor(attempt, position)))
    return [b"".join(events)]


def _event(data: bytes, cursor: Cursor | None = None, event: str | None = None) -> bytes:
    id_ = None if cursor is None else str(cursor)
    return ServerSentEvent(data.decode(), sep="\n", id=id_, event=event).encode()
