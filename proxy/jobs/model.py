"""The value types of the core: immutable, created at the edges and passed inward."""

from dataclasses import dataclass, replace
from typing import NewType, TypeAlias

from proxy.jobs.lifecycle import TERMINAL, Event, Status

JobId = NewType("JobId", str)
EndpointId = NewType("EndpointId", str)
WorkerId = NewType("WorkerId", str)
Owner = NewType("Owner", str)
Millis = NewType("Millis", int)
"""A point in time, in milliseconds since the Unix epoch, or a duration in milliseconds."""


@dataclass(frozen=True, slots=True)
class Request:
    """Work of a worker: one call of the engine's HTTP API, with the client's unchanged body."""

    method: str
    path: str
    content_type: str
    body: bytes


@dataclass(frozen=True, slots=True)
class Input:
    """Work of a worker's handler: the client's `input`, as its unchanged JSON text."""

    body: bytes


Work: TypeAlias = Request | Input


@dataclass(frozen=True, slots=True)
class JobError:
    """The reason that a job has no result: a code for programs and a message for people."""

    code: str
    message: str


@dataclass(frozen=True, slots=True)
class Submission:
    """A new job, before it is in the store.

    Durable jobs are acknowledged after the commit and kept after their end; an interactive job
    lives as long as its client's connection.
    """

    id: JobId
    endpoint: EndpointId
    owner: Owner
    work: Work
    durable: bool
    # Takes no slot of a worker: for example, tokenization.
    light: bool
    low_priority: bool
    # TIMED_OUT if the job is still queued at this time.
    queued_until: Millis | None
    # TIMED_OUT if the job is unfinished at this time.
    expires_at: Millis | None
    # TIMED_OUT if one run takes longer than this duration.
    execution_timeout: Millis
    # The job is deleted this long after its end.
    retention: Millis
    # The URL that is notified when the job ends.
    webhook: str | None = None
    # For the worker only. Encrypted; the plain text is never stored.
    s3_config: bytes | None = None

    def without_body(self) -> "Submission":
        """Return a copy without the request body and `s3_config`."""
        return replace(self, work=replace(self.work, body=b""), s3_config=None)


@dataclass(frozen=True, slots=True)
class Job:
    """A job in the store. Only a store creates new versions, as the lifecycle table allows.

    `failures` counts the runs that were lost since the job was submitted or last retried; clients
    read it as the JSON field `retries`. `retry_count` is another number: how often a client has
    called `retry`. It is not a JSON field, and its SQLite column is named `retries`; a webhook's
    message id consists of the job's id and this count.
    """

    submission: Submission
    # The order in the queue. `release` keeps it, so that the job returns to the front; `retry`
    # assigns a new one.
    sequence: int
    status: Status
    created_at: Millis
    attempt: int = 0
    failures: int = 0
    retry_count: int = 0
    worker: WorkerId | None = None
    taken_at: Millis | None = None
    finished_at: Millis | None = None
    error: JobError | None = None
    # JSON. None if the output is the list in the output log, or if the job has none.
    output: bytes | None = None
    # The cursor up to which a client has read the output. Output that was read is never produced
    # a second time.
    consumed_cursor: int = 0
    last_event: Event | None = None

    @property
    def id(self) -> JobId:
        return self.submission.id

    @property
    def endpoint(self) -> EndpointId:
        return self.submission.endpoint

    @property
    def is_terminal(self) -> bool:
        """True if the job has ended."""
        return self.status in TERMINAL

    def without_body(self) -> "Job":
        """Return the job as clients see it: without the request body and `s3_config`."""
        return replace(self, submission=self.submission.without_body())

    def outline(self) -> "Job":
        """Return the job for a listing: without request body, `s3_config` and output.

        These are the values that can be large.
        """
        return replace(self, submission=self.submission.without_body(), output=None)


@dataclass(frozen=True, slots=True)
class Delivery:
    """A pending webhook: the notification that this attempt of a job has ended.

    `tries` is the number of deliveries that have failed so far.
    """

    job: Job
    tries: int


@dataclass(frozen=True, slots=True)
class Counts:
    """The number of an endpoint's jobs by status.

    Ended jobs and retries are counted since the store was created.
    """

    in_queue: int = 0
    in_progress: int = 0
    completed: int = 0
    failed: int = 0
    cancelled: int = 0
    timed_out: int = 0
    retried: int = 0


@dataclass(frozen=True, slots=True)
class Outcome:
    """The end of a job, as reported to its client. Every job has exactly one."""

    # True if the client gets the complete response of the engine, which may be an error response.
    answered: bool
    error: JobError | None = None
