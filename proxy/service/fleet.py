"""The connected workers, the runs that each of them holds, and their credit."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

from proxy.jobs.model import EndpointId, Job, JobId, WorkerId
from proxy.service.ports import WorkerPort

# Remembered reports of unhealthy workers. Runpod workers appear under ever new ids, and the reports
# may never be read.
UNHEALTHY_MAX_WORKERS = 1_000
# Bytes of request bodies on their way to one worker. Slots alone would not bound the memory.
UNSENT_MAX_BYTES = 32 * 1024 * 1024


@dataclass(slots=True)
class Hold:
    """A run that a worker holds.

    `since`: the event loop's time when the job was offered. `received`: the number of its frames
    that have arrived (see `wire.frames.Hello`). `stopped`: the event loop's time when the worker
    was asked to end the run. `has_ended`: its `End` has arrived and is being written to the store.
    """

    attempt: int
    light: bool
    since: float
    durable: bool = False
    received: int = 0
    stopped: float | None = None
    has_ended: bool = False


class Load(NamedTuple):
    """The occupied slots and all slots of a worker."""

    taken: int
    slots: int


@dataclass(slots=True)
class Worker:
    """One worker, until its lease expires. It can be disconnected for a while in between.

    `port` is None while it is not connected. `seen`: the event loop's time of its last message.
    `ignored`: the number of its frames about runs that it does not hold. `is_ending`: its provider
    is ending it. `has_exited`: its process has ended, so no message can follow.
    """

    id: WorkerId
    endpoint: EndpointId
    port: WorkerPort | None
    seen: float
    engine: str = ""
    has_models: bool = False
    slots: int = 0
    light_slots: int = 0
    holds: dict[JobId, Hold] = field(default_factory=dict)
    light_held: int = 0
    ignored: int = 0
    is_ending: bool = False
    has_exited: bool = False

    @property
    def is_open(self) -> bool:
        """True if jobs can be offered to it at all."""
        return self.port is not None and not self.is_ending

    @property
    def is_writable(self) -> bool:
        """True if a job would reach it soon: few bytes of earlier jobs are unsent."""
        return self.is_open and self.port is not None and self.port.backlog < UNSENT_MAX_BYTES

    @property
    def held(self) -> int:
        """The occupied slots. A stopped run counts until the worker has ended it."""
        return len(self.holds) - self.light_held

    @property
    def credit(self) -> int:
        """The free slots."""
        return max(0, self.slots - self.held) if self.is_writable else 0

    @property
    def light_credit(self) -> int:
        """The free slots for light jobs."""
        return max(0, self.light_slots - self.light_held) if self.is_writable else 0

    @property
    def is_ready(self) -> bool:
        """True if it can serve: connected, loaded and not draining."""
        return self.is_open and self.slots > 0

    def load(self, *, light: bool) -> Load:
        """Return the occupied slots and all slots for jobs of this kind."""
        return Load(self.light_held, self.light_slots) if light else Load(self.held, self.slots)

    def hold(self, job: Job, *, since: float, received: int = 0) -> None:
        """Add a run: one that was just offered, or one from before the start of this proxy."""
        self.release(job.id)
        submission = job.submission
        self.holds[job.id] = Hold(
            job.attempt, submission.light, since, submission.durable, received
        )
        self.light_held += submission.light

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


class Fleet:
    """All workers, by id and by endpoint."""

    def __init__(self) -> None:
        self._workers: dict[WorkerId, Worker] = {}
        self._unhealthy: dict[WorkerId, tuple[EndpointId, float]] = {}

    def __iter__(self) -> Iterator[Worker]:
        return iter(tuple(self._workers.values()))

    def get(self, worker_id: WorkerId | None) -> Worker | None:
        """Return the worker with this id, connected or not."""
        return self._workers.get(worker_id) if worker_id is not None else None

    def add(self, worker: Worker) -> None:
        """Add a worker that has joined."""
        self._workers[worker.id] = worker
        self._unhealthy.pop(worker.id, None)

    def remove(self, worker_id: WorkerId) -> None:
        """Remove a worker that is lost or has left."""
        self._workers.pop(worker_id, None)

    def report(self, worker_id: WorkerId, endpoint: EndpointId, until: float) -> None:
        """Show a worker as unhealthy until that time (the event loop's), or until it joins
        again.
        """
        self._unhealthy.pop(worker_id, None)
        self._unhealthy[worker_id] = (endpoint, until)
        if len(self._unhealthy) > UNHEALTHY_MAX_WORKERS:
            oldest = next(iter(self._unhealthy))
            del self._unhealthy[oldest]

    def unhealthy(self, endpoint: EndpointId, now: float) -> int:
        """Return the number of unhealthy workers of an endpoint."""
        self._unhealthy = {
            worker_id: report for worker_id, report in self._unhealthy.items() if report[1] > now
        }
        return sum(reported == endpoint for reported, _ in self._unhealthy.values())

    def of(self, endpoint: EndpointId) -> list[Worker]:
        """Return the workers of an endpoint."""
        return [worker for worker in self._workers.values() if worker.endpoint == endpoint]

    def is_ready(self, endpoint: EndpointId) -> bool:
        """Return True if a worker of the endpoint can serve."""
        return any(worker.is_ready for worker in self.of(endpoint))

    def running(self, endpoint: EndpointId) -> int:
        """Return the number of workers of the endpoint that can serve."""
        return sum(worker.is_ready for worker in self.of(endpoint))

    def next_free(self, endpoint: EndpointId) -> tuple[Worker, int] | None:
        """Return the least loaded worker with a free slot, and the jobs that make it as loaded as
        the next one.
        """
        free = [worker for worker in self.of(endpoint) if worker.credit]
        if not free:
            return None
        free.sort(key=lambda worker: worker.held)
        first = free[0]
        gap = free[1].held - first.held if len(free) > 1 else first.credit
        return first, min(first.credit, max(1, gap))

    def next_light(self, endpoint: EndpointId) -> Worker | None:
        """Return the worker with the most free slots for light jobs, if any."""
        return max(
            (worker for worker in self.of(endpoint) if worker.light_credit),
            key=lambda worker: worker.light_credit,
            default=None,
        )
