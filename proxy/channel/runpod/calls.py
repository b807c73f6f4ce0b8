"""The requests of Runpod workers: their paths and parameters, and the jobs in the responses.

A worker receives a job as a flat JSON object with `id` and `input`. The data from the client is
passed on unchanged.
"""

import re
from collections.abc import Callable, Sequence
from typing import NamedTuple, TypeAlias
from urllib.parse import parse_qs

import msgspec

from proxy.access.encryption import OtherSealError
from proxy.jobs.model import Input
from proxy.service.ports import OfferedJob

# The maximum number of jobs that one poll may ask for.
POLL_MAX_JOBS = 1_000

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


class WorkerRequest(NamedTuple):
    """A request of a Runpod worker. `fault`: the error message if the request is invalid."""

    endpoint: str
    verb: str
    worker: str = ""
    job: str = ""
    fault: str = ""


def find_request(path: str) -> WorkerRequest:
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
    return WorkerRequest(endpoint, verb, worker, job, fault)


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
    return TakeQuery(min(max(wanted, 1), POLL_MAX_JOBS), fields.get("job_in_progress") == "0")


class PingQuery(NamedTuple):
    """The jobs that a ping lists, and the failed health check of the worker, if any."""

    jobs: frozenset[str]
    fault: str


def read_ping(query: bytes) -> PingQuery:
    """Parse the parameters of `ping`."""
    fields = _fields(query)
    jobs = frozenset(filter(None, fields.get("job_id", "").split(",")))
    if fields.get("status") != "unhealthy":
        return PingQuery(jobs, "")
    return PingQuery(
        jobs, f"{fields.get('check', 'a check')} failed: {fields.get('reason', '')}"[:300]
    )


def is_stream(query: bytes) -> bool:
    """Return True if a post comes from a handler that is a generator."""
    return _fields(query).get("isStream") == "true"


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
