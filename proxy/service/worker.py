"""One connected worker: the runs that it holds, and its credit."""

from dataclasses import dataclass, field
from typing import NamedTuple

from proxy.jobs.model import EndpointId, JobId, Millis, WorkerId
from proxy.service.ports import OfferedJob, Sink, WorkerPort

# Bytes of request bodies on their way to one worker. Slots alone would not bound the memory.
UNSENT_MAX_BYTES = 32 * 1024 * 1024
# From this attempt on, a run that did not reach its worker counts as lost. Three lost runs fail a
# job, so a job whose connections always break is sent at most 12 times.
UNDELIVERED_MAX_ATTEMPTS = 10


@dataclass(slots=True)
class Hold:
    """A run that a worker holds.

    `sink` receives its output. `since`: the event loop's time when the job was offered. `received`:
    the number of its frames that have arrived (see `wire.frames.Hello`). `complete`: the number of
    frames that the sink has, as `wire.frames.Acknowledge` counts them. `stopped`: the event
    loop's time when the worker was asked to end the run. `has_head`: the head of its response has
    arrived. `parts`: the received parts of an output value that is not complete, of `parts_size`
    bytes with overhead. `is_listed`: the worker has listed the run in a `Hello`. `is_unsent`: a
    part of the job was still unsent when its connection ended.
    """

    attempt: int
    light: bool
    since: float
    sink: Sink
    received: int = 0
    complete: int = 0
    stopped: float | None = None
    has_head: bool = False
    parts: list[bytes] = field(default_factory=list)
    parts_size: int = 0
    is_listed: bool = False
    is_unsent: bool = False

    @property
    def is_delivered(self) -> bool:
        """True if the job has certainly reached its worker, or may no longer count as undelivered.

        The number of attempts is bounded, because a job that never arrives must end too.
        """
        is_known = self.received > 0 or self.is_listed
        return is_known or self.attempt >= UNDELIVERED_MAX_ATTEMPTS

    @property
    def may_have_run(self) -> bool:
        """True unless a part of the job certainly did not reach its worker."""
        return self.is_delivered or not self.is_unsent


class LoadingStage(NamedTuple):
    """The stage of a worker that is not ready yet, in words for clients, and when it began."""

    text: str
    since: Millis


class Load(NamedTuple):
    """The occupied slots and all slots of a worker."""

    taken: int
    slots: int


@dataclass(slots=True)
class Worker:
    """One worker, until its lease expires. It can be disconnected for a while in between.

    `port` is None while it is not connected. `seen`: the event loop's time when its lease began.
    `heard`: that of its last message. `instance`: the identity of its process, or an empty string.
    `reserved`, `light_reserved`: slots for jobs that the store is being asked for. `unwritten`: the
    attempts of runs whose ends are being written to the store. `ignored`: the
    number of its frames about runs that it does not hold. `stage`: what it has reported last of its
    start, until it has slots. `is_ending`: its provider is ending it. `has_exited`: its process has
    ended, so no message can follow. `full_at`: the number of runs with which its engine was full,
    until the event loop's time `full_until`.
    """

    id: WorkerId
    endpoint: EndpointId
    port: WorkerPort | None
    seen: float
    heard: float = float("-inf")
    instance: str = ""
    engine: str = ""
    has_models: bool = False
    slots: int = 0
    light_slots: int = 0
    holds: dict[JobId, Hold] = field(default_factory=dict)
    light_held: int = 0
    reserved: int = 0
    light_reserved: int = 0
    unwritten: dict[JobId, int] = field(default_factory=dict)
    ignored: int = 0
    stage: LoadingStage | None = None
    is_ending: bool = False
    has_exited: bool = False
    full_at: int | None = None
    full_until: float = 0.0

    @property
    def announces_models(self) -> bool:
        """True if such a worker announces its models, at the latest when it is ready."""
        return True

    @property
    def is_open(self) -> bool:
        """True if jobs can be offered to it at all."""
        return self.port is not None and not self.is_ending

    @property
    def is_writable(self) -> bool:
        """True if a job would reach it soon: few bytes of earlier jobs are unsent."""
        port = self.port
        return port is not None and not self.is_ending and port.backlog < UNSENT_MAX_BYTES

    @property
    def held(self) -> int:
        """The occupied slots. A stopped run counts until the worker has ended it."""
        return len(self.holds) - self.light_held

    @property
    def occupied(self) -> int:
        """The slots that are occupied or reserved."""
        return len(self.holds) - self.light_held + self.reserved

    @property
    def credit(self) -> int:
        """The free slots that are not reserved."""
        slots = self.slots if self.full_at is None else min(self.slots, self.full_at)
        free = slots - self.held - self.reserved
        return free if free > 0 and self.is_writable else 0

    @property
    def light_credit(self) -> int:
        """The free slots for light jobs that are not reserved."""
        free = self.light_slots - self.light_held - self.light_reserved
        return max(0, free) if self.is_writable and not self.is_full else 0

    @property
    def is_full(self) -> bool:
        """True if its engine has refused a job, and none of its runs has ended since then."""
        return self.full_at is not None and self.held >= self.full_at

    @property
    def is_ready(self) -> bool:
        """True if it can serve: connected, loaded and not draining."""
        return self.is_open and self.slots > 0

    def load(self, *, light: bool) -> Load:
        """Return the occupied slots and all slots for jobs of this kind."""
        return Load(self.light_held, self.light_slots) if light else Load(self.held, self.slots)

    def could_take(self, *, is_form: bool) -> bool:  # noqa: ARG002 - for Runpod workers
        """Return True if it can run such a job, now or when one of its runs has ended.

        `is_form`: the request of the job is a multipart form.
        """
        return self.is_ready and not self.is_full

    def reserve(self, number: int, *, light: bool) -> None:
        """Keep slots free for jobs that the store is being asked for; a negative number gives them
        back.
        """
        if light:
            self.light_reserved += number
        else:
            self.reserved += number

    def hold(self, job: OfferedJob, sink: Sink, *, since: float, received: int = 0) -> None:
        """Add a run: one that was just taken, or one from before the start of this proxy."""
        self.release(job.id)
        light = job.submission.light
        self.holds[job.id] = Hold(job.attempt, light, since, sink, received, complete=received)
        self.light_held += light

    def stop(self, job_id: JobId, *, now: float) -> None:
        """Ask it to end a run that it holds. The slot stays occupied until the worker has ended the
        run.

        A worker that is not connected is asked when it reconnects.
        """
        hold = self.holds.get(job_id)
        if hold is not None:
            hold.stopped = now
            if self.port is not None:
                self.port.stop(job_id, hold.attempt)

    def release(self, job_id: JobId) -> None:
        """Remove a run and free its slot."""
        hold = self.holds.pop(job_id, None)
        if hold is not None:
            self.light_held -= hold.light
