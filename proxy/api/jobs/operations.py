"""The operations of the queue API: one function each, and what is the same for all of them.

Every answer is JSON and every error `{"error": "<sentence>"}` without an `id`: Runpod's asyncio client reads whatever
it gets, and takes what has an id for a job.
"""

import asyncio
from collections.abc import Awaitable, Callable

import msgspec
import structlog
from fastapi import APIRouter, Request, Response

from proxy.api.body import JSON, ClientGoneError, read_body, require_type
from proxy.api.errors import TOLD, ApiError, limit_headers, told
from proxy.api.jobs import rendering
from proxy.api.jobs.answer import JsonAnswer
from proxy.api.jobs.envelope import (
    MAX_TTL,
    MIN_LIFE,
    WAIT,
    CheckUrl,
    read_millis,
    read_order,
    read_wait,
)
from proxy.api.jobs.events import event_stream, start, wants_events
from proxy.jobs.lifecycle import Status
from proxy.jobs.model import Job
from proxy.service.budget import Budget, Share
from proxy.service.clock import Clock
from proxy.service.endpoints import Endpoint, Endpoints
from proxy.service.fleet import Fleet
from proxy.service.intake import Intake
from proxy.service.keys import Principal
from proxy.service.limits import Limits
from proxy.service.queue import Queue
from proxy.service.seal import Seal
from proxy.store.base import JobStore

log = structlog.get_logger()

RUN_BYTES = 10 * 1024 * 1024
RUNSYNC_BYTES = 20 * 1024 * 1024
HOLD_SECONDS = 5.0  # `stream` without `?wait=`: Runpod's Python client gives up reading after 10 s
PAGE, MAX_PAGE = 50, 1_000
GONE = 499  # nobody reads it


OPERATIONS: dict[str, tuple[str, ...]] = {
    "/run": ("POST",),
    "/runsync": ("POST",),
    "/status/{job}": ("GET", "POST"),  # the Go client posts what the others get
    "/status-sync/{job}": ("GET", "POST"),
    "/stream/{job}": ("GET", "POST"),
    "/cancel/{job}": ("POST",),
    "/retry/{job}": ("POST",),
    "/purge-queue": ("POST",),
    "/health": ("GET",),
    "/requests": ("GET",),
}
"""What stands below an endpoint, and how it is asked for; `edge.routes` lets in what is here and nothing else."""


class Asked:
    """One request: who asks, and which endpoint."""

    def __init__(self, request: Request, endpoint: Endpoint, principal: Principal, share: Share) -> None:
        self.request, self.endpoint, self.owner = request, endpoint, principal.owner
        self.key = principal.key_id
        self._share = share
        self.leave: Callable[[], None] = _nothing  # the request is over, for the limits

    def drop_body(self) -> None:
        """What the body said is in the store: others can have its room."""
        self._share.give_back()

    def query(self, name: str) -> str | None:
        return self.request.query_params.get(name)

    async def body(self, limit: int) -> bytes:
        headers = dict(self.request.scope["headers"])
        require_type(headers.get(b"content-type", JSON), JSON)
        return await read_body(self.request.receive, headers, limit, self._share)


Operation = Callable[[Asked, str], Awaitable[bytes | Response]]


class JobsApi:
    """Answers the operations; `router` has their routes."""

    def __init__(
        self,
        endpoints: Endpoints,
        fleet: Fleet,
        store: JobStore,
        queue: Queue,
        intake: Intake,
        limits: Limits,
        bodies: Budget,
        answers: Budget,
        clock: Clock,
        check_url: CheckUrl,
        seal: Seal,
    ) -> None:
        self._endpoints, self._fleet, self._store, self._queue = endpoints, fleet, store, queue
        self._intake, self._limits, self._clock = intake, limits, clock
        self._bodies, self._answers = bodies, answers
        self._check_url, self._seal = check_url, seal

    def router(self) -> APIRouter:
        """The routes."""
        router = APIRouter(prefix="/v2/{endpoint}")
        operations: dict[str, Operation] = {
            "run": self.run,
            "runsync": self.runsync,
            "status": self.status,
            "status-sync": self.status_sync,
            "stream": self.stream,
            "cancel": self.cancel,
            "retry": self.retry,
            "purge-queue": self.purge,
            "health": self.health,
            "requests": self.requests,
        }
        for path, methods in OPERATIONS.items():
            name = path.split("/")[1]
            answer = self._answering(name, operations[name])
            router.add_api_route(path, answer, methods=[*methods], name=name, summary=operations[name].__doc__)
        return router

    async def run(self, asked: Asked, _: str) -> bytes:
        """Put a job in the queue."""
        await self._intake.check(asked.endpoint)
        order = read_order(await asked.body(RUN_BYTES), self._check_url, self._seal)
        return rendering.brief(await self._queue.submit(asked.endpoint, asked.owner, await order))

    async def runsync(self, asked: Asked, _: str) -> bytes:
        """Put a job in the queue and wait for its end, at most `?wait=` milliseconds."""
        wait = read_wait(asked.query("wait"))
        await self._intake.check(asked.endpoint)
        order = read_order(await asked.body(RUNSYNC_BYTES), self._check_url, self._seal, wait)
        job = await self._queue.submit(asked.endpoint, asked.owner, await order)  # nothing of the body is kept here
        asked.drop_body()
        ended = await self._queue.wait_end(asked.endpoint, asked.owner, job.id, wait / 1000)
        return await self._shown(ended or job)

    async def status(self, asked: Asked, job_id: str) -> bytes:
        """Where a job stands. `?ttl=` lets its life end so many milliseconds from now."""
        ttl = read_millis("ttl", asked.query("ttl"), MIN_LIFE, MAX_TTL)
        job = await self._job(asked, job_id)
        if ttl is not None:
            job = await self._queue.limit_life(job, ttl) or job
        return await self._shown(job)

    async def status_sync(self, asked: Asked, job_id: str) -> bytes:
        """Where a job stands once it has ended, or after `?wait=` milliseconds."""
        wait = read_wait(asked.query("wait"))
        job = await self._queue.wait_end(asked.endpoint, asked.owner, job_id, wait / 1000)
        return await self._shown(_found(job, job_id))

    async def stream(self, asked: Asked, job_id: str) -> bytes | Response:
        """Output that no client has had yet; with `?after=` that behind so many elements, and nothing is drained."""
        wait, after = asked.query("wait"), asked.query("after")
        headers = asked.request.headers
        if wants_events(headers.get("accept", "")):
            place = start(headers.get("last-event-id"), read_millis("after", after, 0, 2**53))
            leave, asked.leave = asked.leave, _nothing  # it lasts for as long as its stream
            events = await event_stream(self._queue, asked.endpoint, asked.owner, job_id, place, leave)
            if events is None:
                leave()
                raise _missing(job_id)
            return events
        seconds = HOLD_SECONDS if wait is None else min(read_wait(wait), WAIT) / 1000
        if after is None:
            drained = await self._queue.drain(asked.endpoint, asked.owner, job_id, seconds)
            if drained is None:
                raise _missing(job_id)
            return rendering.stream(*drained)
        cursor = read_millis("after", after, 0, 2**53) or 0
        read = await self._queue.read(asked.endpoint, asked.owner, job_id, cursor, seconds)
        if read is None:
            raise _missing(job_id)
        return rendering.stream(read[0], read[1])

    async def cancel(self, asked: Asked, job_id: str) -> bytes:
        """End a job."""
        return rendering.brief(_found(await self._queue.cancel(asked.endpoint, asked.owner, job_id), job_id))

    async def retry(self, asked: Asked, job_id: str) -> bytes:
        """Put a failed job in the queue again, under its id."""
        return rendering.brief(_found(await self._queue.retry(asked.endpoint, asked.owner, job_id), job_id))

    async def purge(self, asked: Asked, _: str) -> bytes:
        """Cancel every job that waits."""
        removed = await self._queue.purge(asked.endpoint, asked.owner)
        return msgspec.json.encode({"removed": removed, "status": "completed"})

    async def health(self, asked: Asked, _: str) -> bytes:
        """Jobs and workers of the endpoint."""
        counts = await self._store.counts(asked.endpoint.id)
        workers = self._fleet.of(asked.endpoint.id)
        ready = sum(worker.is_ready for worker in workers)
        running = sum(bool(worker.holds) for worker in workers)
        jobs = {
            "completed": counts.completed,
            "failed": counts.failed,
            "inProgress": counts.in_progress,
            "inQueue": counts.in_queue,
            "retried": counts.retried,
        }
        states = {
            "idle": sum(worker.is_ready and not worker.holds for worker in workers),
            "initializing": len(workers) - ready,
            "ready": ready,
            "running": running,
            "throttled": 0,
            "unhealthy": self._fleet.unhealthy(asked.endpoint.id, asyncio.get_running_loop().time()),
        }
        return msgspec.json.encode({"jobs": jobs, "workers": states, "durable": self._store.durable})

    async def requests(self, asked: Asked, _: str) -> bytes:
        """Recent jobs, newest first: `?limit=`, `?before=` (the last page's `next`), `?status=`."""
        limit = read_millis("limit", asked.query("limit"), 1, MAX_PAGE) or PAGE
        before = read_millis("before", asked.query("before"), 1, 2**53)
        wanted = asked.query("status")
        if wanted is not None and wanted not in set(Status):
            raise ApiError("invalid_body", f"`status` must be one of {', '.join(Status)}.")
        status = None if wanted is None else Status(wanted)
        jobs = await self._queue.recent(asked.endpoint, asked.owner, before=before, limit=limit, status=status)
        now = self._clock.now()
        rows = [
            {
                "id": job.id,
                "status": job.status,
                "createdAt": job.created_at,
                "delayTime": rendering.delay(job, now),
                "executionTime": rendering.execution(job, now),
                "retries": job.failures,
                "workerId": job.worker,
            }
            for job in jobs
        ]
        following = jobs[-1].sequence if len(jobs) == limit else None
        return msgspec.json.encode({"requests": rows, "next": following})

    async def _job(self, asked: Asked, job_id: str) -> Job:
        return _found(await self._queue.get(asked.endpoint, asked.owner, job_id), job_id)

    async def _shown(self, job: Job) -> bytes:
        elements = await self._queue.outputs(job) if job.submission.durable and job.is_terminal else ()
        reason, progress = self._queue.reason(job), self._queue.progress(job)
        return rendering.full(job, elements, self._clock.now(), reason, progress)

    def _answering(self, name: str, operation: Operation) -> Callable[[Request], Awaitable[Response]]:
        async def respond(request: Request) -> Response:
            share = self._bodies.share(request.state.principal.key_id)
            asked: Asked | None = None
            try:
                asked = self._asked(request, share)
                asked.leave, left = self._limits.enter(asked.key, asked.endpoint.id, name)
                answer = await operation(asked, request.path_params.get("job", ""))
                response = answer if isinstance(answer, Response) else JsonAnswer(answer, self._answers)
                for key, value in limit_headers(left):
                    response.headers[key.decode()] = value.decode()
                return response
            except TOLD as error:
                return refusal(told(error))
            except ClientGoneError:
                return Response(status_code=GONE)
            except Exception:  # a bug of ours: the client gets an error it can read, the log gets the rest
                log.exception("api.bug", path=request.url.path)
                return refusal(ApiError("internal_error", "This server failed. The error is in its log."))
            finally:
                share.give_back()
                if asked is not None:
                    asked.leave()

        return respond

    def _asked(self, request: Request, share: Share) -> Asked:
        name = request.path_params["endpoint"]
        endpoint = self._endpoints.get(name)
        if endpoint is None:
            raise ApiError("endpoint_not_found", f"There is no endpoint {name[:80]!r} here.")
        return Asked(request, endpoint, request.state.principal, share)


def refusal(error: ApiError) -> Response:
    """An error as this API tells it."""
    headers = {name.decode(): value.decode() for name, value in error.headers()}
    return Response(queue_error(error), error.row.status, headers, media_type="application/json")


def queue_error(error: ApiError) -> bytes:
    """The body of an error as this API tells it."""
    return msgspec.json.encode({"error": error.message})


def _nothing() -> None:
    pass


def _found(job: Job | None, job_id: str) -> Job:
    if job is None:
        raise _missing(job_id)
    return job


def _missing(job_id: str) -> ApiError:
    return ApiError("job_not_found", f"There is no job {job_id[:80]!r} here: it never was, or its time has ended.")
