"""The operations of the queue API: one method each, and the handling that all of them share.

Every response is JSON. Every error is `{"error": "<sentence>"}` without an `id`, because Runpod's
asyncio client ignores the status and treats every object with an `id` as a job.
"""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, TypeVar

import msgspec
import structlog
from starlette.requests import Request
from starlette.responses import Response

from proxy.access.limits import BudgetError, ClientLimits, Share, limit_headers
from proxy.api.errors import BUG, CLIENT_ERRORS, ApiError, to_api_error
from proxy.api.http import ClientGoneError, Routing, routing_of
from proxy.api.queue import response
from proxy.api.queue.listing import Listing
from proxy.api.queue.request import (
    DEFAULT_WAIT_MS,
    MAX_TTL_MS,
    MIN_REMAINING_TTL_MS,
    OrderReader,
    RequestContext,
    nothing,
    read_cursor,
    read_millis,
    read_poll_wait,
    read_wait,
)
from proxy.api.queue.response import JsonAnswer, refusal
from proxy.api.queue.sse import EventStream, start, wants_events
from proxy.api.unknown import unknown_endpoint
from proxy.jobs.job_request import JobRequest
from proxy.jobs.model import Cursor, Job, JobId
from proxy.service.admission import Admission
from proxy.service.clock import Clock
from proxy.service.durable import DurableJobs
from proxy.service.endpoints import Endpoints
from proxy.service.interactive import InteractiveJobs
from proxy.service.job_view import UNRESERVED_MAX_BYTES, JobView, ReadLimits
from proxy.service.json_text import INLINE_MAX_BYTES, in_thread_if_large
from proxy.store.errors import StoreBusyError

log = structlog.get_logger()

T = TypeVar("T")

RUN_BODY_MAX_BYTES = 10 * 1024 * 1024
RUNSYNC_BODY_MAX_BYTES = 20 * 1024 * 1024
# The long-poll timeout of `stream` without `?wait=`. The read timeout of Runpod's Python client is
# 10 s.
STREAM_WAIT_SECONDS = 5.0
# The status for a client that has disconnected; it is never sent.
CLIENT_CLOSED_REQUEST = 499

OPERATIONS: dict[str, tuple[str, ...]] = {
    "/run": ("POST",),
    "/runsync": ("POST",),
    # POST for Runpod's Go client; the other clients use GET.
    "/status/{job}": ("GET", "POST"),
    "/status-sync/{job}": ("GET", "POST"),
    "/stream/{job}": ("GET", "POST"),
    "/cancel/{job}": ("POST",),
    "/retry/{job}": ("POST",),
    "/purge-queue": ("POST",),
    "/health": ("GET",),
    "/requests": ("GET",),
}
"""The paths below an endpoint with their methods; `edge.gate` accepts these and no others."""


Operation = Callable[[RequestContext, str], Awaitable[bytes | EventStream]]


class JobOperations:
    """The operations on jobs, one method each.

    A method takes the context and the id of the job, or "" for an operation without one.
    """

    def __init__(
        self,
        view: JobView,
        durable: DurableJobs,
        interactive: InteractiveJobs,
        admission: Admission,
        clock: Clock,
        orders: OrderReader,
    ) -> None:
        self._view = view
        self._durable = durable
        self._interactive = interactive
        self._admission = admission
        self._clock = clock
        self._orders = orders

    async def run(self, context: RequestContext, _: str) -> bytes:
        """Submit a job to the queue."""
        self._admission.check(context.endpoint)
        body = await context.body(RUN_BODY_MAX_BYTES)
        order = await self._orders.read(body)
        key = await context.submission_key("run", body)
        del body
        return response.brief(await self._submit(context, replace(order, key=key)))

    async def runsync(self, context: RequestContext, _: str) -> bytes:
        """Submit a job and wait for its end, at most `?wait=` milliseconds."""
        wait = read_wait(context.query("wait")) or DEFAULT_WAIT_MS
        self._admission.check(context.endpoint)
        body = await context.body(RUNSYNC_BODY_MAX_BYTES)
        order = await self._orders.read(body, wait)
        key = await context.submission_key("runsync", body)
        job = await self._submit(context, replace(order, key=key))
        del order, body
        context.drop_body()
        end = self._view.wait_end(
            context.endpoint,
            context.owner,
            job.id,
            wait / 1000,
            context.reserve,
            is_owned=True,
        )
        try:
            ended = await context.unless_gone(end)
        except (StoreBusyError, BudgetError):
            # The job exists: a client that sent it again after an error would run it twice.
            ended = None
        return await self._shown(*(ended or (job, ())))

    async def status(self, context: RequestContext, job_id: str) -> bytes:
        """Return the state of a job. `?ttl=` sets its remaining time to live, in milliseconds."""
        ttl = read_millis("ttl", context.query("ttl"), MIN_REMAINING_TTL_MS, MAX_TTL_MS)
        if ttl is not None:
            job = await self._view.get(context.endpoint, context.owner, job_id)
            await self._durable.limit_life(_found(job, job_id), ttl)
        found = await self._view.result(context.endpoint.id, context.owner, job_id, context.reserve)
        return await self._shown(*_found(found, job_id))

    async def status_sync(self, context: RequestContext, job_id: str) -> bytes:
        """Return the state of a job when it has ended, or after `?wait=` milliseconds."""
        wait = read_poll_wait(context.query("wait")) or DEFAULT_WAIT_MS
        found = await context.unless_gone(
            self._view.wait_end(
                context.endpoint, context.owner, job_id, wait / 1000, context.reserve
            )
        )
        return await self._shown(*_found(found, job_id))

    async def stream(self, context: RequestContext, job_id: str) -> bytes | EventStream:
        """Return new output and consume it. `?after=` returns the elements after a cursor (an
        earlier `next`) without consuming them.
        """
        wait = read_poll_wait(context.query("wait"))
        after = context.query("after")
        cursor = read_cursor("after", after)
        headers = context.request.headers
        if wants_events(headers.get("accept", "")):
            place = start(headers.get("last-event-id"), cursor)
            _found(await self._view.get(context.endpoint, context.owner, job_id), job_id)
            # The request ends with its event stream, not with this method.
            leave = context.leave
            context.leave = nothing
            return EventStream(self._view, context, job_id, place, leave)
        seconds = STREAM_WAIT_SECONDS if wait is None else min(wait, DEFAULT_WAIT_MS) / 1000
        limits = ReadLimits(UNRESERVED_MAX_BYTES, True, context.reserve)
        if after is None:
            consumed = await context.unless_gone(
                self._durable.consume(context.endpoint, context.owner, job_id, seconds, limits)
            )
            return await self._streamed(*_found(consumed, job_id))
        page = await context.unless_gone(
            self._view.read(context.endpoint, context.owner, job_id, cursor, seconds, limits)
        )
        job, elements, following, _ = _found(page, job_id)
        return await self._streamed(job, elements, following)

    async def cancel(self, context: RequestContext, job_id: str) -> bytes:
        """Cancel a job."""
        call = self._interactive.cancel(context.endpoint.id, context.owner, JobId(job_id))
        job = call or await self._durable.cancel(context.endpoint, context.owner, job_id)
        return response.brief(_found(job, job_id))

    async def retry(self, context: RequestContext, job_id: str) -> bytes:
        """Submit a FAILED or TIMED_OUT job again, with the same id."""
        return response.brief(
            _found(await self._durable.retry(context.endpoint, context.owner, job_id), job_id)
        )

    async def purge(self, context: RequestContext, _: str) -> bytes:
        """Cancel all queued jobs of the caller."""
        removed = self._interactive.purge(context.endpoint.id, context.owner)
        removed += await self._durable.purge(context.endpoint, context.owner)
        return msgspec.json.encode({"removed": removed, "status": "completed"})

    async def _submit(self, context: RequestContext, order: JobRequest) -> Job:
        # Again, because reading the body took time.
        self._admission.check(context.endpoint)
        return await self._durable.submit(context.endpoint, context.owner, order)

    async def _shown(self, job: Job, elements: Sequence[bytes]) -> bytes:
        reason = self._view.reason(job)
        progress = self._view.progress(job)
        render = partial(response.full, job, elements, self._clock.now(), reason, progress)
        if job.output is not None:
            # Large ones one at a time: a copy of 50 MB takes 20 ms.
            return await in_thread_if_large(lambda _: render(), job.output)
        if sum(map(len, elements)) > INLINE_MAX_BYTES:
            return await asyncio.to_thread(render)
        return render()

    async def _streamed(
        self, job: Job, elements: Sequence[bytes], following: Cursor | None = None
    ) -> bytes:
        if sum(map(len, elements)) > INLINE_MAX_BYTES:
            return await asyncio.to_thread(response.stream, job, elements, following)
        return response.stream(job, elements, following)


class JobsApi:
    """The ASGI application of the queue API: the handling that all operations share."""

    def __init__(
        self, endpoints: Endpoints, limits: ClientLimits, jobs: JobOperations, listing: Listing
    ) -> None:
        self._endpoints = endpoints
        self._limits = limits
        # By the first segment of the path below the endpoint (`OPERATIONS`).
        self._operations: dict[str, Operation] = {
            "run": jobs.run,
            "runsync": jobs.runsync,
            "status": jobs.status,
            "status-sync": jobs.status_sync,
            "stream": jobs.stream,
            "cancel": jobs.cancel,
            "retry": jobs.retry,
            "purge-queue": jobs.purge,
            "health": listing.health,
            "requests": listing.requests,
        }

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Handle a request that the gate has authorized."""
        response = await self._respond(Request(scope, receive))
        await response(scope, receive, send)

    async def refuse(self, scope: Any, receive: Any, send: Any, error: ApiError) -> None:
        """Send `error` as the response to a request that the gate has rejected."""
        await refusal(error)(scope, receive, send)

    async def _respond(self, request: Request) -> Response | JsonAnswer | EventStream:
        limits = self._limits
        routing = routing_of(request.scope)
        name = routing.operation
        share = limits.bodies.share(routing.caller.owner)
        answer_share = limits.answers.share(routing.caller.owner)
        context: RequestContext | None = None
        response: Response | JsonAnswer | EventStream | None = None
        try:
            context = self._context(request, routing, share, answer_share)
            context.leave, left = limits.requests.enter(context.key, context.endpoint.id, name)
            answer = await self._operations[name](context, routing.parameters.job or "")
            if isinstance(answer, bytes):
                response = JsonAnswer(answer, answer_share, limit_headers(left))
            else:
                response = answer
                response.raw_headers.extend(limit_headers(left))
            return response
        except CLIENT_ERRORS as error:
            return refusal(to_api_error(error))
        except ClientGoneError:
            return Response(status_code=CLIENT_CLOSED_REQUEST)
        except Exception:
            # A bug of the proxy: the client receives an error object, the log the traceback.
            log.exception("api.bug", path=request.url.path)
            return refusal(ApiError("internal_error", BUG))
        finally:
            share.give_back()
            if response is None:
                # Otherwise the response gives it back, once it has been sent.
                answer_share.give_back()
            if context is not None:
                context.leave()

    def _context(
        self, request: Request, routing: Routing, share: Share, answer_share: Share
    ) -> RequestContext:
        name = routing.parameters.endpoint or ""
        endpoint = self._endpoints.get(name)
        if endpoint is None:
            raise unknown_endpoint(name, self._endpoints)
        return RequestContext(request, endpoint, routing.caller, share, answer_share)


def _found(found: T | None, job_id: str) -> T:
    if found is None:
        raise _missing(job_id)
    return found


def _missing(job_id: str) -> ApiError:
    return ApiError(
        "job_not_found",
        f"Unknown job {job_id[:80]!r}: it never existed, or its result has expired.",
    )
