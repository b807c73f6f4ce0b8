"""The operation `stream` as server-sent events: one event per element, then one for the job's end.

`id` is the cursor after an element, so that a client that reconnects with `Last-Event-ID` misses
nothing. Output is read, not consumed. The last event is `event: end` with the job's status.
"""

from collections.abc import AsyncIterator, Callable

import msgspec
import structlog
from sse_starlette import EventSourceResponse, ServerSentEvent

from proxy.api.errors import ApiError
from proxy.api.http import WRITE_TIMEOUT_SECONDS, read_whole
from proxy.api.queue.response import split
from proxy.jobs.model import Owner
from proxy.service.endpoints import Endpoint
from proxy.service.job_view import JobView
from proxy.store.base import StoreError

log = structlog.get_logger()

EVENT_STREAM = "text/event-stream"
# The largest integer that JavaScript and other clients represent exactly.
MAX_CURSOR = 2**53
# The timeout of one read of a job without new output; the job is then read again.
READ_WAIT_SECONDS = 60.0
PING_INTERVAL_SECONDS = 15


def wants_events(accept: str) -> bool:
    """Return True if the `Accept` header names event streams; `*/*` selects JSON."""
    return any(part.partition(";")[0].strip().lower() == EVENT_STREAM for part in accept.split(","))


def start(last_event_id: str | None, after: int) -> int:
    """Return the cursor to start at: `Last-Event-ID`, or `?after=` without it.

    Raises `ApiError` if `Last-Event-ID` is not a cursor.
    """
    if last_event_id:
        cursor = read_whole(last_event_id)
        if cursor is None or cursor > MAX_CURSOR:
            raise ApiError(
                "invalid_body", "`Last-Event-ID` must be the `id` of an event of this stream."
            )
        return cursor
    return after


async def event_stream(
    view: JobView,
    endpoint: Endpoint,
    owner: Owner,
    job_id: str,
    cursor: int,
    leave: Callable[[], None],
) -> EventSourceResponse | None:
    """Return the response, or None if the job does not exist.

    `leave` is called when the stream has ended.
    """
    if await view.get(endpoint, owner, job_id) is None:
        return None

    async def events() -> AsyncIterator[ServerSentEvent]:
        position = cursor
        try:
            while (
                found := await view.read(endpoint, owner, job_id, position, READ_WAIT_SECONDS)
            ) is not None:
                job, elements, next_position = found
                for number, element in enumerate(elements, position + 1):
                    *parts, last = split(element)
                    for part in parts:
                        yield _event(part)
                    yield _event(last, id=str(number))
                position = next_position
                if job.is_terminal:
                    yield _event(msgspec.json.encode({"status": job.status}), event="end")
                if job.is_terminal or view.is_over:
                    return
        except StoreError as error:
            # Without the event `end`, the client connects again and continues at its last event.
            log.warning("stream.cut", job=job_id, why=str(error))
        finally:
            leave()

    headers = {"Cache-Control": "no-cache, no-transform"}
    return EventSourceResponse(
        events(),
        headers=headers,
        ping=PING_INTERVAL_SECONDS,
        sep="\n",
        send_timeout=WRITE_TIMEOUT_SECONDS,
    )


def _event(data: bytes, *, id: str | None = None, event: str | None = None) -> ServerSentEvent:  # noqa: A002 - SSE's
    return ServerSentEvent(data.decode(), sep="\n", id=id, event=event)
