"""The nouns of the core: frozen values, made at the edges and passed inward."""

from dataclasses import dataclass, replace
from typing import NewType, TypeAlias

from proxy.jobs.lifecycle import TERMINAL, Event, Status

JobId = NewType("JobId", str)
EndpointId = NewType("EndpointId", str)
WorkerId = NewType("WorkerId", str)
Owner = NewType("Owner", str)
Millis = NewType("Millis", int)
"""A moment, in milliseconds since the epoch, or a length of time in milliseconds."""


@dataclass(frozen=True, slots=True)
class Request:
    """What a worker should do: one call of the engine's HTTP API. The body is the client's, byte for byte."""

    method: str
    path: str
    content_type: str
    body: bytes


@dataclass(frozen=True, slots=True)
class Input:
    """What a worker's handler should do: the `input` that the client gave, as the JSON text that it was."""

    body: bytes


Work: TypeAlias = Request | Input


@dataclass(frozen=True, slots=True)
class JobError:
    """Why a job has no result: a code for programs, a sentence for people."""

    code: str
    message: str


@dataclass(frozen=True, slots=True)
class Submission:
    """A job before the store has it."""

    id: JobId
    endpoint: EndpointId
    owner: Owner
    work: Work
    durable: bool  # acknowledged after commit, kept after its end; an interactive job lives with its client
    light: bool  # takes no slot: tokenizing and the like
    low_priority: bool
    queued_until: Millis | None  # TIMED_OUT when it still waits then
    expires_at: Millis | None  # TIMED_OUT when it is unfinished then
    execution_timeout: Millis  # TIMED_OUT when one run takes longer
    retention: Millis  # forgotten this long after its end
    webhook: str | None = None  # who is told of its end
    s3_config: bytes | None = None  # for the worker only; sealed, never as the client gave it

    def without_body(self) -> "Submission":
        """The same without what the client sent for the worker."""
        return replace(self, work=replace(self.work, body=b""), s3_config=None)


@dataclass(frozen=True, slots=True)
class Job:
    """A job as the store has it. Only a store makes a new version, as the lifecycle table allows.

    `failures` counts the runs that were lost since the job was submitted or last retried; clients
    read it as the JSON field `retries`. `retry_count` is another number: how often a client has
    called `retry`. It is not a JSON field, and its SQLite column is named `retries`; a webhook's
    message id consists of the job's id and this count.
    """

    submission: Submission
    sequence: (
        int  # its place in line; kept by `release`, so it goes to the front, and new at `retry`
    )
    status: Status
    created_at: Millis
    attempt: int = 0
    failures: int = 0
    retry_count: int = 0
    worker: WorkerId | None = None
    taken_at: Millis | None = None
    finished_at: Millis | None = None
    error: JobError | None = None
    output: bytes | None = (
        None  # JSON; None where the output is the list in its log, or there is none
    )
    consumed_cursor: int = (
        0  # the cursor up to which a client has taken its output; what was taken is never made anew
    )
    last_event: Event | None = None

    @property
    def id(self) -> JobId:
        """The id that the client knows."""
        return self.submission.id

    @property
    def endpoint(self) -> EndpointId:
        """The endpoint in whose queue it stands."""
        return self.submission.endpoint

    @property
    def is_terminal(self) -> bool:
        """Whether it has ended."""
        return self.status in TERMINAL

    def without_body(self) -> "Job":
        """The job as its client sees it: without what it sent for the worker."""
        return replace(self, submission=self.submission.without_body())

    def outline(self) -> "Job":
        """The job as lists have it: without the request's body, `s3_config` and output, which can be large."""
        return replace(self, submission=self.submission.without_body(), output=None)


@dataclass(frozen=True, slots=True)
class Delivery:
    """A webhook that has to arrive: the end of this attempt of this job, told for the `tries + 1`st time."""

    job: Job
    tries: int


@dataclass(frozen=True, slots=True)
class Counts:
    """How many jobs of an endpoint stand where; the ended ones count since the store began."""

    in_queue: int = 0
    in_progress: int = 0
    completed: int = 0
    failed: int = 0
    cancelled: int = 0
    timed_out: int = 0
    retried: int = 0


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a job ended, as its client is told. Every job has exactly one."""

    answered: bool  # the engine's answer is whole, and is the client's (it may be an error answer)
    error: JobError | None = None
