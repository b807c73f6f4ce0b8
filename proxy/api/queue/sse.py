"""The operation `stream` as server-sent events: one event per element, then one for the job's end.

`id` is the cursor after an element (`ATTEMPT-POSITION`), so that a client that reconnects with
`Last-Event-ID` misses nothing. Output is read, not consumed. If the attempt was lost before any of
its output was sent, a comment says so, and the stream begins again with the next attempt. The last
event is `event: end` with the job's status.
"""

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any

import msgspec
import structlog
from sse_starlette import EventSourceResponse, ServerSentEvent
from sse_starlette.sse import SendTimeoutError

from proxy.access.limits import Share
from proxy.api.errors import ApiError
from proxy.api.http import WRITE_TIMEOUT_SECONDS, abort_of
from proxy.api.queue.request import parse_cursor
from proxy.api.queue.response import split
from proxy.jobs.model import Cursor, Owner
from proxy.service.endpoints import Endpoint
from proxy.service.job_view import JobView, ReadLimits
from proxy.store.errors import StoreError

log = structlog.get_logger()

EVENT_STREAM = "text/event-stream"
# The timeout of one read of a job without new output; the job is then read again.
READ_WAIT_SECONDS = 60.0
PING_INTERVAL_SECONDS = 15
# The output that is read at once: many streams may stand before slow clients.
PAGE_MAX_BYTES = 64 * 1024
# Events that are sent in one turn of the event loop.
EVENTS_PER_TURN = 100


class EventStream(EventSourceResponse):
    """An event stream whose connection is closed if the client stops reading."""

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        try:
            await super().__call__(scope, receive, send)
        except SendTimeoutError:
            # A normal end would wait until the client has read what is buffered.
            abort_of(scope)()


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


def event_stream(
    view: JobView,
    endpoint: Endpoint,
    owner: Owner,
    job_id: str,
    cursor: Cursor,
    share: Share,
    end: Callable[[], None],
) -> EventStream:
    """Return the response. `share`: the bytes that are reserved for elements that exceed a page.

    `end` is called when the stream has ended.
    """

    async def events() -> AsyncIterator[ServerSentEvent]:
        after = cursor
        limits = ReadLimits(PAGE_MAX_BYTES, False, share.wait_to)
        try:
            while (
                page := await view.read(endpoint, owner, job_id, after, READ_WAIT_SECONDS, limits)
            ) is not None:
                job = page.job
                if page.has_restarted:
                    yield ServerSentEvent(comment=f"restarted attempt={job.attempt}", sep="\n")
                first = page.cursor.position - len(page.elements)
                for number, element in enumerate(page.elements, first + 1):
                    *parts, last = split(element)
                    for part in parts:
                        yield _event(part)
                    yield _event(last, id=str(Cursor(job.attempt, number)))
                    if number % EVENTS_PER_TURN == 0:
                        # A client that keeps up does not suspend this stream.
                        await asyncio.sleep(0)
                after = page.cursor
                share.give_back()
                if page.elements and not view.is_over:
                    continue
                if job.is_terminal and not page.elements:
                    yield _event(msgspec.json.encode({"status": job.status}), event="end")
                if job.is_terminal or view.is_over:
                    return
        except StoreError as error:
            # Without the event `end`, the client connects again and continues at its last event.
            log.warning("stream.cut", job=job_id, why=str(error))
        finally:
            share.give_back()
            end()

    headers = {"Cache-Control": "no-cache, no-transform"}
    return EventStream(
        events(),
        headers=headers,
        ping=PING_INTERVAL_SECONDS,
        sep="\n",
        send_timeout=WRITE_TIMEOUT_SECONDS,
    )


def _event(data: bytes, *, id: str | None = None, event: str | None = None) -> ServerSentEvent:  # noqa: A002 - SSE's
    return ServerSentEvent(data.decode(), sep="\n", id=id, event=event)
