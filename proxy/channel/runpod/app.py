"""The channel of Runpod workers: an ASGI application for `/v2/{endpoint}/job-take/…` and others.

After almost any response the SDK sends its next request at once, up to a thousand times a second.
Therefore every poll is a long poll, and every refusal is delayed; only 429 makes the SDK wait by
itself. A result is posted once, so it is never refused because of load.
"""

import asyncio
from collections.abc import Sequence
from typing import Any

import structlog

from proxy.access.limits import Share
from proxy.channel.runpod.calls import (
    Unseal,
    WorkerRequest,
    find_request,
    is_stream,
    read_ping,
    read_take,
    write_jobs,
)
from proxy.channel.runpod.openai import read_result
from proxy.channel.runpod.post_budget import POST_BYTES, PostBudget
from proxy.channel.runpod.registry import TooManyWorkersError, WorkerIdConflictError, WorkerRegistry
from proxy.channel.runpod.results import ResultNotWrittenError, RunpodResults
from proxy.channel.runpod.tracking import CONNECTION, WatchedConnection
from proxy.channel.runpod.worker import RunpodWorker
from proxy.jobs.model import EndpointId, JobId
from proxy.service.endpoints import Endpoints, listed

log = structlog.get_logger()


REFUSAL_SECONDS = 2.0
# The maximum length of a path in the log.
SHOWN_PATH_CHARACTERS = 200
# The maximum number of delayed refusals. Further requests get 429 at once.
MAX_DELAYED_REFUSALS = 64
OK, NONE, TOO_MANY = 200, 204, 429


class CallRefusedError(Exception):
    """A call was refused, with an HTTP status and an error message."""

    def __init__(self, status: int, sentence: str) -> None:
        super().__init__(sentence)
        self.status = status


class RunpodChannel:
    """Serves the requests of Runpod workers."""

    def __init__(
        self,
        endpoints: Endpoints,
        registry: WorkerRegistry,
        posts: RunpodResults,
        bodies: PostBudget,
        unseal: Unseal,
    ) -> None:
        self._endpoints = endpoints
        self._registry = registry
        self._posts = posts
        self._bodies = bodies
        self._unseal = unseal
        self._refusals = 0

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Serve one authenticated call of a worker."""
        request = find_request(scope["path"])
        try:
            endpoint = self._check(request)
            await self._serve(request, endpoint, scope, receive, send)
        except CallRefusedError as refused:
            log.warning(
                "worker.refused", worker=request.worker, code=refused.status, reason=str(refused)
            )
            await self._refuse(send, refused)
        except TooManyWorkersError:
            await _reply(send, TOO_MANY)
        except WorkerIdConflictError:
            await self._refuse(
                send, CallRefusedError(409, f"worker id {request.worker} is used by another worker")
            )
        except ResultNotWrittenError as error:
            await self._refuse(send, CallRefusedError(503, str(error)))
        except Exception:  # a bug in the proxy; the delay prevents immediate retries by the SDK
            log.exception("stock.bug", worker=request.worker, verb=request.verb)
            await self._refuse(
                send, CallRefusedError(500, "internal server error; see the log of the proxy")
            )

    async def refuse(self, scope: Any, _: Any, send: Any, status: int, sentence: str) -> None:
        """Refuse a request that has an invalid token or is malformed."""
        log.warning(
            "worker.refused",
            path=scope["path"][:SHOWN_PATH_CHARACTERS],
            code=status,
            reason=sentence,
        )
        await self._refuse(send, CallRefusedError(status, sentence))

    def _check(self, request: WorkerRequest) -> EndpointId:
        endpoint = self._endpoints.get(request.endpoint)
        if endpoint is None:
            served = listed([one.id for one in self._endpoints])
            raise CallRefusedError(
                404,
                f"no endpoint {request.endpoint!r} here, only {served}:"
                " start the proxy with --endpoint",
            )
        if request.fault:
            raise CallRefusedError(404, request.fault)
        return endpoint.id

    async def _serve(
        self, request: WorkerRequest, endpoint: EndpointId, scope: Any, receive: Any, send: Any
    ) -> None:
        connection: WatchedConnection = scope["extensions"][CONNECTION]
        match request.verb:
            case "job-take" | "job-take-batch":
                await self._take(
                    request,
                    self._asking(endpoint, request, connection),
                    scope["query_string"],
                    receive,
                    send,
                )
            case "job-stop":
                await self._stop(self._asking(endpoint, request, connection), receive, send)
            case "ping":
                await self._ping(request, endpoint, scope["query_string"])
                await _reply(send, OK)
            case _:
                await self._post(request, endpoint, connection, scope, receive)
                await _reply(send, OK)
                if (worker := self._registry.find(endpoint, request.worker)) is not None:
                    worker.post_answered(JobId(request.job), connection)

    def _asking(
        self, endpoint: EndpointId, request: WorkerRequest, connection: WatchedConnection
    ) -> RunpodWorker:
        worker = self._registry.admit(endpoint, request.worker)
        worker.on_request(connection)
        return worker

    async def _take(
        self, request: WorkerRequest, worker: RunpodWorker, query: bytes, receive: Any, send: Any
    ) -> None:
        if worker.is_closed:
            await _reply(send, TOO_MANY)
            return
        asked = read_take(request.verb, query)
        poll = worker.on_poll(asked.wanted, is_idle=asked.is_idle)
        is_there = False
        try:
            is_there = await poll.wait(
                worker.job_poll_timeout(self._registry.timeouts.poll_seconds), receive
            )
        finally:
            jobs = worker.close_poll(poll)
            if not is_there or poll.is_replaced:
                worker.poll_failed(jobs)
        if poll.is_replaced:
            await _reply(send, TOO_MANY)
        elif is_there and jobs:
            written = write_jobs(jobs, self._unseal)
            worker.cannot_read(written.unreadable)
            await _reply_jobs(send, written.encoded, as_list=request.verb == "job-take-batch")
            worker.poll_answered(written.jobs)
        elif is_there:
            await _reply(send, NONE)

    async def _stop(self, worker: RunpodWorker, receive: Any, send: Any) -> None:
        if worker.is_closed:
            await _reply(send, TOO_MANY)
            return
        poll = worker.on_stop_poll()
        if await poll.wait(worker.poll_timeout(self._registry.timeouts.poll_seconds), receive):
            stops = worker.pending_stops(poll)
            named = b",".join(b'"%b"' % job_id.encode() for job_id in stops)
            await _reply(
                send, OK if stops else NONE, b'{"jobsToStop":[%b]}' % named if stops else b""
            )

    async def _ping(self, request: WorkerRequest, endpoint: EndpointId, query: bytes) -> None:
        ping = read_ping(query)
        if ping.fault:
            self._registry.report_unhealthy(endpoint, request.worker, ping.fault, exclude=False)
            return
        worker = self._registry.find(endpoint, request.worker)
        if worker is None and ping.jobs and self._registry.has_orphans():
            worker = self._registry.admit(endpoint, request.worker)
        if worker is not None:
            for job_id in ping.jobs if self._registry.has_orphans() else ():
                await self._registry.adopt(worker, JobId(job_id), waits=False)
            worker.on_ping(ping.jobs, self._registry.orphans(ping.jobs))

    async def _post(
        self,
        request: WorkerRequest,
        endpoint: EndpointId,
        connection: WatchedConnection,
        scope: Any,
        receive: Any,
    ) -> None:
        length = dict(scope["headers"]).get(b"content-length", b"")
        size = min(int(length), POST_BYTES) if length else POST_BYTES
        with self._bodies.share(f"{endpoint}/{request.worker}", size) as share:
            await share.wait(size)
            from_generator = is_stream(scope["query_string"])
            await self._take_post(
                request, endpoint, connection, share, receive, is_stream=from_generator
            )

    async def _take_post(
        self,
        request: WorkerRequest,
        endpoint: EndpointId,
        connection: WatchedConnection,
        share: Share,
        receive: Any,
        *,
        is_stream: bool,
    ) -> None:
        body, is_whole = await _read(receive)
        job_id = JobId(request.job)
        worker = self._registry.find(endpoint, request.worker)
        if worker is None and self._registry.has_orphans():
            worker = self._registry.admit(endpoint, request.worker)
        if worker is None or not is_whole:
            return
        if body is None:
            self._posts.too_large(worker, job_id)
            return
        result = await read_result(body)
        # Progress is posted by a thread on a separate connection, which it closes afterwards.
        if result is not None and result.is_progress:
            self._posts.progress(worker, job_id, result.value)
            return
        worker.on_request(connection)
        if request.verb == "job-done":
            await self._posts.result(worker, job_id, result, is_stream=is_stream)
        elif result is not None and bytes(result.output):
            # The next stages have their own limits, and waiting for them must not delay results.
            share.give_back()
            element = bytes(result.output)
            del body, result
            await self._posts.chunk(worker, job_id, element, connection)

    async def _refuse(self, send: Any, refused: CallRefusedError) -> None:
        if self._refusals >= MAX_DELAYED_REFUSALS:
            await _reply(send, TOO_MANY)
            return
        self._refusals += 1
        try:
            await asyncio.sleep(REFUSAL_SECONDS)
        finally:
            self._refusals -= 1
        await _reply(send, refused.status, str(refused).encode(), b"text/plain; charset=utf-8")


async def _read(receive: Any) -> tuple[bytes | None, bool]:
    """Return a body, or None if it is too large, and whether it was received completely."""
    parts, size = [], 0
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            return None, False
        part = message.get("body", b"")
        size += len(part)
        if size <= POST_BYTES:
            parts.append(part)
        if not message.get("more_body", False):
            return (b"".join(parts), True) if size <= POST_BYTES else (None, True)


async def _reply_jobs(send: Any, jobs: Sequence[bytes], *, as_list: bool) -> None:
    if not jobs:
        await _reply(send, NONE)
    else:
        await _reply(send, OK, b"[%b]" % b",".join(jobs) if as_list else jobs[0])


async def _reply(
    send: Any, status: int, body: bytes = b"", content_type: bytes = b"application/json"
) -> None:
    headers = (
        []
        if status == NONE
        else [(b"content-type", content_type), (b"content-length", b"%d" % len(body))]
    )
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
