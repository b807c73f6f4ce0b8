"""A job's stream as server-sent events: the elements as they come, each with its place, then how the job ended.

`id` is the cursor behind an element, so that a client that comes back with `Last-Event-ID` misses nothing. Nothing is
drained. The last event is `event: end` with the job's status.
"""

from collections.abc import AsyncIterator, Callable

import msgspec
from sse_starlette import EventSourceResponse, ServerSentEvent

from proxy.api.errors import ApiError
from proxy.api.numbers import read_whole
from proxy.api.queue.response import split
from proxy.jobs.model import Owner
from proxy.service.durable import DurableJobs
from proxy.service.endpoints import Endpoint

EVENT_STREAM = "text/event-stream"
MAX_CURSOR = 2**53  # what every client's numbers can hold
READ_WAIT_SECONDS = 60.0  # between two looks at a job that says nothing
PING_INTERVAL_SECONDS = 15
WRITE_TIMEOUT_SECONDS = 60.0  # a reader that stands still for so long is cut


def wants_events(accept: str) -> bool:
    """Whether a client asks for events: by name, for `*/*` means JSON here."""
    return any(part.partition(";")[0].strip().lower() == EVENT_STREAM for part in accept.split(","))


def start(last_event_id: str | None, after: int) -> int:
    """Where to begin: behind the event that the client had last, or where it says."""
    if last_event_id:
        cursor = read_whole(last_event_id)
        if cursor is None or cursor > MAX_CURSOR:
            raise ApiError(
                "invalid_body", "`Last-Event-ID` must be the id of an event of this stream."
            )
        return cursor
    return after


async def event_stream(
    durable: DurableJobs,
    endpoint: Endpoint,
    owner: Owner,
    job_id: str,
    cursor: int,
    leave: Callable[[], None],
) -> EventSourceResponse | None:
    """The response; None if there is no such job. `leave` is called when it is over."""
    if await durable.get(endpoint, owner, job_id) is None:
        return None

    async def events() -> AsyncIterator[ServerSentEvent]:
        place = cursor
        try:
            while (
                found := await durable.read(endpoint, owner, job_id, place, READ_WAIT_SECONDS)
            ) is not None:
                job, elements, place_now = found
                for number, element in enumerate(elements, place + 1):
                    *parts, last = split(element)
                    for part in parts:
                        yield _event(part)
                    yield _event(last, id=str(number))
                place = place_now
                if job.is_terminal:
                    yield _event(msgspec.json.encode({"status": job.status}), event="end")
                if job.is_terminal or durable.is_over:
                    return
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
