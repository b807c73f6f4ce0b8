"""What a stock worker asks: the table of its paths, and of what stands in their queries."""

import re
from typing import NamedTuple
from urllib.parse import parse_qs

MOST_AT_ONCE = 1_000  # jobs that one poll may ask for

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
    """One request of a worker. `fault`: why it is none, as a sentence."""

    endpoint: str
    verb: str
    worker: str = ""
    job: str = ""
    fault: str = ""


def find_call(path: str) -> Call:
    """The call at a path that the route table gives to stock workers: `/v2/{endpoint}/{verb}/...`."""
    _, _, endpoint, verb, rest = path.split("/", 4)
    worker, _, job = rest.partition("/")
    if "&" in rest:
        fault = "the URL that the worker was given needs a `?`: the SDK adds its parameters with `&`"
    elif not _NAME.fullmatch(worker):
        fault = "a worker's id is 1 to 128 letters, digits and ._:-"
    elif (verb in OF_A_JOB) != bool(_NAME.fullmatch(job)) or (job and verb not in OF_A_JOB):
        fault = f"the path is /v2/ENDPOINT/{verb}/WORKER{'/JOB' if verb in OF_A_JOB else ''}"
    else:
        fault = ""
    return Call(endpoint, verb, worker, job, fault)


class TakeQuery(NamedTuple):
    """How many jobs a poll asks for, and whether the worker has any just now."""

    wanted: int
    is_idle: bool


def read_take(verb: str, query: bytes) -> TakeQuery:
    """The parameters of `job-take` and `job-take-batch`. A worker that says nothing of its jobs may have some."""
    fields = _fields(query)
    size = fields.get("batch_size", "1")
    wanted = int(size[:9]) if verb == "job-take-batch" and size.isascii() and size.isdigit() else 1
    return TakeQuery(min(max(wanted, 1), MOST_AT_ONCE), fields.get("job_in_progress") == "0")


class PingQuery(NamedTuple):
    """The jobs that a ping names, and what is wrong with the worker."""

    jobs: frozenset[str]
    illness: str


def read_ping(query: bytes) -> PingQuery:
    """The parameters of `ping`."""
    fields = _fields(query)
    jobs = frozenset(filter(None, fields.get("job_id", "").split(",")))
    if fields.get("status") != "unhealthy":
        return PingQuery(jobs, "")
    return PingQuery(jobs, f"{fields.get('check', 'a check')} failed: {fields.get('reason', '')}"[:300])


def _fields(query: bytes) -> dict[str, str]:
    return {name: values[-1] for name, values in parse_qs(query.decode("latin-1")).items()}
