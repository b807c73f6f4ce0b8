"""The value types of the core, created at the edges and passed inward. All but the record of an
interactive job are immutable.
"""

from collections.abc import Callable
from dataclasses import astuple, dataclass
from operator import add
from typing import NamedTuple, NewType, Protocol, TypeAlias

from msgspec import Struct
from msgspec.structs import replace

from proxy.jobs.lifecycle import TERMINAL, Event, Status, advance
from proxy.jobs.webhook import receiver_address

JobId = NewType("JobId", str)
EndpointId = NewType("EndpointId", str)
WorkerId = NewType("WorkerId", str)
Owner = NewType("Owner", str)
Millis = NewType("Millis", int)
"""A point in time, in milliseconds since the Unix epoch, or a duration in milliseconds."""

EVENT_STREAM = "text/event-stream"
FIRST_ERROR_STATUS = 400


class Request(Struct, frozen=True, gc=False):
    """Work of a worker: one call of the engine's HTTP API, with the client's unchanged body.

    `fields`: further header fields, with names in lower case.
    """

    method: str
    path: str
    content_type: str
    body: bytes
    fields: tuple[tuple[bytes, bytes], ...] = ()


class Input(Struct, frozen=True, gc=False):
    """Work of a worker's handler: the client's `input`, as its unchanged JSON text."""

    body: bytes


Work: TypeAlias = Request | Input


class Head(Struct, frozen=True, gc=False):
    """Status and header fields of the engine's response."""

    status: int
    content_type: str
    fields: tuple[tuple[bytes, bytes], ...] = ()

    @property
    def is_stream(self) -> bool:
        """True if the body is an event stream that is passed on as it arrives.

        An error response is not a stream: it is passed on whole, with its own status.
        """
        return self.content_type.startswith(EVENT_STREAM) and self.status < FIRST_ERROR_STATUS


class JobError(Struct, frozen=True, gc=False):
    """The reason that a job has no result: a code for programs and a message for people."""

    code: str
    message: str


class Receiver(NamedTuple):
    """The program that acknowledges an owner's webhooks at one address (see `receiver_address`).

    The webhooks of two owners for the same address have two receivers.
    """

    owner: Owner
    address: str


class SubmissionKey(NamedTuple):
    """The key under which a client may submit a job again: the operation and its
    `Idempotency-Key`, and the SHA-256 of the request body.
    """

    name: str
    digest: bytes


class Submission(Struct, frozen=True, gc=False):
    """The content and the limits of a new job; they do not change while it runs."""

    id: JobId
    endpoint: EndpointId
    owner: Owner
    work: Work
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
    # No other job of the endpoint and owner has a key with this name.
    key: SubmissionKey | None = None

    @property
    def receiver(self) -> Receiver:
        """Owner and address; the address is empty if the job has no webhook."""
        return Receiver(self.owner, receiver_address(self.webhook))

    def without_body(self) -> "Submission":
        """Return a copy without the request body, its header fields and `s3_config`."""
        work = self.work
        work = Input(b"") if isinstance(work, Input) else replace(work, body=b"", fields=())
        return replace(self, work=work, s3_config=None)


class JobState(Protocol):
    """The state of a job of either kind, to read. Decisions in `policy` are functions of it."""

    @property
    def id(self) -> JobId: ...
    @property
    def endpoint(self) -> EndpointId: ...
    @property
    def submission(self) -> Submission: ...
    @property
    def sequence(self) -> int: ...
    @property
    def status(self) -> Status: ...
    @property
    def created_at(self) -> Millis: ...
    @property
    def attempt(self) -> int: ...
    @property
    def failures(self) -> int: ...
    @property
    def worker(self) -> WorkerId | None: ...
    @property
    def taken_at(self) -> Millis | None: ...
    @property
    def is_terminal(self) -> bool: ...
    @property
    def last_event(self) -> Event | None: ...


class Job(Struct, frozen=True, gc=False):
    """A durable job in the store, or an outline of an interactive job.

    Only a store creates new versions, as the lifecycle table allows.

    `attempt` counts the takes, for people and in messages. `run` is the fencing token of all writes
    about a run: a random number, new at each take and at each adoption, and 0 before the first
    take.

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
    run: int = 0
    failures: int = 0
    retry_count: int = 0
    worker: WorkerId | None = None
    taken_at: Millis | None = None
    finished_at: Millis | None = None
    error: JobError | None = None
    # JSON. None if the output is the list in the output log, or if the job has none.
    output: bytes | None = None
    # The cursor up to which `/stream` has returned the output.
    consumed_cursor: int = 0
    # Output of the current attempt was given to a client. It is never produced a second time.
    delivered: bool = False
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


@dataclass(slots=True)
class InteractiveJob:
    """The record of an interactive job: an OpenAI call, whose client waits on its connection.

    It lives in the memory of the proxy that holds the connection, and changes in place. Its fields
    have the meaning that they have in `Job`.
    """

    submission: Submission
    sequence: int
    created_at: Millis
    status: Status = Status.IN_QUEUE
    attempt: int = 0
    failures: int = 0
    worker: WorkerId | None = None
    taken_at: Millis | None = None
    finished_at: Millis | None = None
    error: JobError | None = None
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

    def take(self, worker: WorkerId, now: Millis) -> None:
        """Hand the queued job out to a worker."""
        self._apply(Event.TAKE)
        self.attempt += 1
        self.worker = worker
        self.taken_at = now

    def release(self, *, counts: bool) -> bool:
        """Return the running job to its place in the queue; `counts`: the run was a failure.

        Returns False, and changes nothing, if it does not run.
        """
        if not self._apply(Event.RELEASE):
            return False
        self.worker = None
        self.taken_at = None
        self.failures += counts
        return True

    def end(self, event: Event, error: JobError | None, now: Millis) -> bool:
        """Apply an event that ends the job; return False, and change nothing, if it is illegal."""
        if not self._apply(event):
            return False
        self.finished_at = now
        self.error = error
        return True

    def drop_body(self) -> None:
        """Drop the request body."""
        self.submission = self.submission.without_body()

    def outline(self) -> Job:
        """Return the job for a response: without its request body."""
        return Job(
            self.submission.without_body(),
            self.sequence,
            self.status,
            self.created_at,
            attempt=self.attempt,
            failures=self.failures,
            worker=self.worker,
            taken_at=self.taken_at,
            finished_at=self.finished_at,
            error=self.error,
            last_event=self.last_event,
        )

    def _apply(self, event: Event) -> bool:
        target = advance(self.status, event)
        if target is None:
            return False
        self.status = target
        self.last_event = event
        return True


class Delivery(Struct, frozen=True, gc=False):
    """A pending webhook: this attempt of a job has ended. `tries`: how many tries have failed."""

    job: Job
    tries: int


class Cursor(NamedTuple):
    """A reader's position in the output of one attempt of a durable job; 0: the current one."""

    attempt: int
    position: int

    def __str__(self) -> str:
        """Return the cursor as clients see it: `ATTEMPT-POSITION`."""
        return f"{self.attempt}-{self.position}"


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

    def __add__(self, other: "Counts") -> "Counts":
        return Counts(*map(add, astuple(self), astuple(other)))


class Outcome(Struct, frozen=True, gc=False):
    """The end of an interactive job, as reported to its client. Every job has exactly one."""

    # True if the client gets the complete response of the engine, which may be an error response.
    answered: bool
    error: JobError | None = None


RandomBytes: TypeAlias = Callable[[int], bytes]
"""Return the given number of random bytes.

They come from the operating system or, in a simulation, from a seed.
"""

UUID_BYTES = 16
REQUEST_ID_BYTES = 12
RUN_BYTES = 8


class Ids:
    """Generates ids from random bytes; equal bytes give equal ids."""

    def __init__(self, random_bytes: RandomBytes) -> None:
        self._random_bytes = random_bytes

    def interactive_job(self) -> JobId:
        """Return a new id of an interactive job: a UUID of version 4 and the suffix `-i1`."""
        return JobId(f"{self._uuid()}-i1")

    def durable_job(self, *, is_sync: bool) -> JobId:
        """Return a new id of a job of the queue API: a UUID of version 4 and the suffix `-u1`.

        The ids of `runsync` (`is_sync`) also have the prefix `sync-`.
        """
        return JobId(f"{'sync-' if is_sync else ''}{self._uuid()}-u1")

    def run(self) -> int:
        """Return a new run number (`Job.run`): positive, with 63 bits."""
        return (int.from_bytes(self._random_bytes(RUN_BYTES)) >> 1) or 1

    def request(self) -> str:
        """Return the random part of a new request id: 24 hexadecimal digits."""
        return self._random_bytes(REQUEST_ID_BYTES).hex()

    def _uuid(self) -> str:
        """Return a UUID of version 4 (RFC 9562, section 5.4)."""
        digits = self._random_bytes(UUID_BYTES).hex()
        variant = "89ab"[int(digits[16], 16) & 3]
        return (
            f"{digits[:8]}-{digits[8:12]}-4{digits[13:16]}-{variant}{digits[17:20]}-{digits[20:]}"
        )
