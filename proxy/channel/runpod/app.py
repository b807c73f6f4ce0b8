"""The channel of Runpod workers: an ASGI application for `/v2/{endpoint}/job-take/…` and others.

After almost any response the SDK sends its next request at once, up to a thousand times a second.
Therefore every poll is a long poll, and every refusal is delayed; only 429 makes the SDK wait by
itself. A result is posted once, so it is never refused because of load.

A worker receives a job as a flat JSON object with `id` and `input`. The data from the client is
passed on unchanged.
"""

import asyncio
import re
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypeAlias
from urllib.parse import parse_qs

import msgspec
import structlog

from proxy.access.encryption import OtherSealError
from proxy.access.limits import Share
from proxy.channel.runpod.openai import read_result
from proxy.channel.runpod.post_budget import POST_BYTES, PostBudget
from proxy.channel.runpod.registry import TooManyWorkersError, WorkerIdConflictError, WorkerRegistry
from proxy.channel.runpod.results import ResultNotWrittenError, RunpodResults
from proxy.channel.runpod.tracking import CONNECTION, WatchedConnection
from proxy.channel.runpod.worker import RunpodWorker
from proxy.jobs.model import EndpointId, Input, JobId
from proxy.service.endpoints import Endpoints, listed
from proxy.service.ports import OfferedJob

log = structlog.get_logger()


# The maximum number of jobs that one poll may ask for.
MOST_AT_ONCE = 1_000

METHODS = {
    "job-take": "GET",
    "job-take-batch": "GET",
    "job-stop": "GET",
    "ping": "GET",
    "job-done": "POST",
    "job-stream": "POST",
}
OF_A_JOB = ("job-done", "job-stream")

_NAME = re.compile(r"[A-Za-z0-9._:-]{1,128}")


class Call(NamedTuple):
    """One request of a worker. `fault`: the error message if the request is invalid."""

    endpoint: str
    verb: str
    worker: str = ""
    job: str = ""
    fault: str = ""


def find_call(path: str) -> Call:
    """Parse a path of the Runpod worker API: `/v2/{endpoint}/{verb}/...`."""
    _, _, endpoint, verb, rest = path.split("/", 4)
    worker, _, job = rest.partition("/")
    if "&" in rest:
        fault = "the URL set for the worker must contain a `?`: the SDK adds parameters with `&`"
    elif not _NAME.fullmatch(worker):
        fault = "a worker's id must be 1 to 128 letters, digits, or any of ._:-"
    elif (verb in OF_A_JOB) != bool(_NAME.fullmatch(job)) or (job and verb not in OF_A_JOB):
        fault = f"the path must be /v2/ENDPOINT/{verb}/WORKER{'/JOB' if verb in OF_A_JOB else ''}"
    else:
        fault = ""
    return Call(endpoint, verb, worker, job, fault)


class TakeQuery(NamedTuple):
    """The number of jobs that a poll asks for, and whether the worker is idle."""

    wanted: int
    is_idle: bool


def read_take(verb: str, query: bytes) -> TakeQuery:
    """Parse the parameters of `job-take` and `job-take-batch`.

    A worker that does not report its number of jobs is not considered idle.
    """
    fields = _fields(query)
    size = fields.get("batch_size", "1")
    wanted = int(size[:9]) if verb == "job-take-batch" and size.isascii() and size.isdigit() else 1
    return TakeQuery(min(max(wanted, 1), MOST_AT_ONCE), fields.get("job_in_progress") == "0")


class PingQuery(NamedTuple):
    """The jobs that a ping lists, and the failed health check of the worker, if any."""

    jobs: frozenset[str]
    illness: str


def read_ping(query: bytes) -> PingQuery:
    """Parse the parameters of `ping`."""
    fields = _fields(query)
    jobs = frozenset(filter(None, fields.get("job_id", "").split(",")))
    if fields.get("status") != "unhealthy":
        return PingQuery(jobs, "")
    return PingQuery(
        jobs, f"{fields.get('check', 'a check')} failed: {fields.get('reason', '')}"[:300]
    )


def _fields(query: bytes) -> dict[str, str]:
    return {name: values[-1] for name, values in parse_qs(query.decode("latin-1")).items()}


Unseal: TypeAlias = Callable[[bytes], bytes]
"""Decrypts values that only the worker may see. Raises OtherSealError."""


class WrittenJobs(NamedTuple):
    """The jobs in the response to a poll, encoded, and those whose secrets cannot be decrypted."""

    jobs: list[OfferedJob]
    encoded: list[bytes]
    unreadable: list[OfferedJob]


def write_jobs(jobs: Sequence[OfferedJob], unseal: Unseal) -> WrittenJobs:
    """Encode the jobs in the response to a poll."""
    written = WrittenJobs([], [], [])
    for job in jobs:
        try:
            written.encoded.append(_job(job, unseal))
            written.jobs.append(job)
        except OtherSealError:
            written.unreadable.append(job)
    return written


def _job(job: OfferedJob, unseal: Unseal) -> bytes:
    work, sealed = job.submission.work, job.submission.s3_config
    if isinstance(work, Input):
        given = work.body
    else:
        # worker-vllm sends a request without `openai_input` as GET.
        body = b',"openai_input":' + work.body if work.body else b""
        given = b'{"openai_route":%b%b}' % (msgspec.json.encode(work.path), body)
    more = b"" if sealed is None else b',"s3Config":' + unseal(sealed)
    return b'{"id":%b,"input":%b%b}' % (msgspec.json.encode(job.id), given, more)


REFUSAL_SECONDS = 2.0
# The maximum length of a path in the log.
PATH_SHOWN = 200
# The maximum number of delayed refusals. Further requests get 429 at once.
MOST_REFUSALS = 64
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
        call = find_call(scope["path"])
        try:
            endpoint = self._check(call)
            await self._serve(call, endpoint, scope, receive, send)
        except CallRefusedError as refused:
            log.warning(
                "worker.refused", worker=call.worker, code=refused.status, reason=str(refused)
            )
            await self._refuse(send, refused)
        except TooManyWorkersError:
            await _reply(send, TOO_MANY)
        except WorkerIdConflictError:
            await self._refuse(
                send, CallRefusedError(409, f"worker id {call.worker} is used by another worker")
            )
        except ResultNotWrittenError as error:
            await self._refuse(send, CallRefusedError(503, str(error)))
        except Exception:  # a bug in the proxy; the delay prevents immediate retries by the SDK
            log.exception("stock.bug", worker=call.worker, verb=call.verb)
            await self._refuse(
                send, CallRefusedError(500, "internal server error; see the log of the proxy")
            )

    async def refuse(self, scope: Any, _: Any, send: Any, status: int, sentence: str) -> None:
        """Refuse a request that has an invalid token or is malformed."""
        log.warning("worker.refused", path=scope["path"][:PATH_SHOWN], code=status, reason=sentence)
        await self._refuse(send, CallRefusedError(status, sentence))

    def _check(self, call: Call) -> EndpointId:
        endpoint = self._endpoints.get(call.endpoint)
        if endpoint is None:
            served = listed([one.id for one in self._endpoints])
            raise CallRefusedError(
                404,
                f"no endpoint {call.endpoint!r} here, only {served}:"
                " start the proxy with --endpoint",
            )
        if call.fault:
            raise CallRefusedError(404, call.fault)
        return endpoint.id

    async def _serve(
        self, call: Call, endpoint: EndpointId, scope: Any, receive: Any, send: Any
    ) -> None:
        line: WatchedConnection = scope["extensions"][CONNECTION]
        match call.verb:
            case "job-take" | "job-take-batch":
                await self._take(
                    call, self._asking(endpoint, call, line), scope["query_string"], receive, send
                )
            case "job-stop":
                await self._stop(self._asking(endpoint, call, line), receive, send)
            case "ping":
                await self._ping(call, endpoint, scope["query_string"])
                await _reply(send, OK)
            case _:
                await self._post(call, endpoint, line, scope, receive)
                await _reply(send, OK)
                if (worker := self._registry.find(endpoint, call.worker)) is not None:
                    worker.answered(JobId(call.job), line)

    def _asking(self, endpoint: EndpointId, call: Call, line: WatchedConnection) -> RunpodWorker:
        worker = self._registry.admit(endpoint, call.worker)
        worker.asks(line)
        return worker

    async def _take(
        self, call: Call, worker: RunpodWorker, query: bytes, receive: Any, send: Any
    ) -> None:
        if worker.is_closed:
            await _reply(send, TOO_MANY)
            return
        asked = read_take(call.verb, query)
        poll = worker.take(asked.wanted, is_idle=asked.is_idle)
        is_there = False
        try:
            is_there = await poll.wait(worker.hold_take(self._registry.patience.hold), receive)
        finally:
            jobs = worker.taken(poll)
            if not is_there or poll.is_replaced:
                worker.missed(jobs)
        if poll.is_replaced:
            await _reply(send, TOO_MANY)
        elif is_there and jobs:
            written = write_jobs(jobs, self._unseal)
            worker.cannot_read(written.unreadable)
            await _reply_jobs(send, written.encoded, as_list=call.verb == "job-take-batch")
            worker.got(written.jobs)
        elif is_there:
            await _reply(send, NONE)

    async def _stop(self, worker: RunpodWorker, receive: Any, send: Any) -> None:
        if worker.is_closed:
            await _reply(send, TOO_MANY)
            return
        poll = worker.listen()
        if await poll.wait(worker.hold(self._registry.patience.hold), receive):
            stops = worker.stops(poll)
            named = b",".join(b'"%b"' % job_id.encode() for job_id in stops)
            await _reply(
                send, OK if stops else NONE, b'{"jobsToStop":[%b]}' % named if stops else b""
            )

    async def _ping(self, call: Call, endpoint: EndpointId, query: bytes) -> None:
        ping = read_ping(query)
        if ping.illness:
            self._registry.fell_ill(endpoint, call.worker, ping.illness, shun=False)
            return
        worker = self._registry.find(endpoint, call.worker)
        if worker is None and ping.jobs and self._registry.has_orphans():
            worker = self._registry.admit(endpoint, call.worker)
        if worker is not None:
            for job_id in ping.jobs if self._registry.has_orphans() else ():
                await self._registry.adopt(worker, JobId(job_id), waits=False)
            worker.pinged(ping.jobs)

    async def _post(
        self, call: Call, endpoint: EndpointId, line: WatchedConnection, scope: Any, receive: Any
    ) -> None:
        length = dict(scope["headers"]).get(b"content-length", b"")
        size = min(int(length), POST_BYTES) if length else POST_BYTES
        with self._bodies.share(f"{endpoint}/{call.worker}", size) as share:
            await share.wait(size)
            is_stream = _fields(scope["query_string"]).get("isStream") == "true"
            await self._take_post(call, endpoint, line, share, receive, is_stream=is_stream)

    async def _take_post(
        self,
        call: Call,
        endpoint: EndpointId,
        line: WatchedConnection,
        share: Share,
        receive: Any,
        *,
        is_stream: bool,
    ) -> None:
        body, is_whole = await _read(receive)
        job_id = JobId(call.job)
        worker = self._registry.find(endpoint, call.worker)
        if worker is None and self._registry.has_orphans():
            worker = self._registry.admit(endpoint, call.worker)
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
        worker.asks(line)
        if call.verb == "job-done":
            await self._posts.result(worker, job_id, result, is_stream=is_stream)
        elif result is not None and bytes(result.output):
            # The next stages have their own limits, and waiting for them must not delay results.
            share.give_back()
            element = bytes(result.output)
            del body, result
            await self._posts.chunk(worker, job_id, element, line)

    async def _refuse(self, send: Any, refused: CallRefusedError) -> None:
        if self._refusals >= MOST_REFUSALS:
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
