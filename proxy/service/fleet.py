"""The workers that have dialled in, what each of them holds, and how much more it can take."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

from proxy.jobs.model import EndpointId, Job, JobId, WorkerId
from proxy.service.ports import WorkerPort

MOST_ILL = 1_000  # that are remembered; stock workers come under ever new names, and nobody may ask how many are ill
MOST_OWED = (
    32 * 1024 * 1024
)  # bytes of bodies on their way to one worker; slots alone bound no memory


@dataclass(slots=True)
class Hold:
    """A run that a worker has. `received` counts the frames of it that have come (see `wire.frames.Hello`)."""

    attempt: int
    light: bool
    since: float  # the event loop's time when it was offered
    durable: bool = False
    received: int = 0
    stopped: float | None = None  # the event loop's time when the worker was told to end it
    has_ended: bool = False  # the worker has said how; that is being written


class Load(NamedTuple):
    """How many slots are taken, of how many."""

    taken: int
    slots: int


@dataclass(slots=True)
class Worker:
    """One worker, as long as its lease lasts; its connection may be gone for a moment in between."""

    id: WorkerId
    endpoint: EndpointId
    port: WorkerPort | None  # None: not connected just now
    seen: float  # the event loop's time when it was last heard of
    engine: str = ""
    has_models: bool = False
    slots: int = 0
    light_slots: int = 0
    holds: dict[JobId, Hold] = field(default_factory=dict)
    light_held: int = 0
    ignored: int = 0  # frames of runs that it does not hold, or that nobody expects
    is_ending: bool = False  # it was given up, and its process is being ended
    has_exited: bool = False  # its process has ended, so it will not be heard of again

    @property
    def is_open(self) -> bool:
        """Whether jobs can be given to it at all."""
        return self.port is not None and not self.is_ending

    @property
    def has_way(self) -> bool:
        """Whether a job would reach it soon: what it was given before is not in the way."""
        return self.is_open and self.port is not None and self.port.backlog < MOST_OWED

    @property
    def held(self) -> int:
        """Slots in use. A stopped run counts until the worker has let go of it."""
        return len(self.holds) - self.light_held

    @property
    def credit(self) -> int:
        """Free slots."""
        return max(0, self.slots - self.held) if self.has_way else 0

    @property
    def light_credit(self) -> int:
        """Free room for light jobs."""
        return max(0, self.light_slots - self.light_held) if self.has_way else 0

    @property
    def is_ready(self) -> bool:
        """Whether it can serve: connected, loaded, and not draining."""
        return self.is_open and self.slots > 0

    def load(self, *, light: bool) -> Load:
        """Its slots for jobs of this kind."""
        return Load(self.light_held, self.light_slots) if light else Load(self.held, self.slots)

    def hold(self, job: Job, *, since: float, received: int = 0) -> None:
        """Note a run that it was given, or that it has from before this proxy was started."""
        self.let_go(job.id)
        submission = job.submission
        self.holds[job.id] = Hold(
            job.attempt, submission.light, since, submission.durable, received
        )
        self.light_held += submission.light

    def stop(self, job_id: JobId, *, now: float) -> None:
        """Tell it to end a run that it holds. The run keeps its slot until the worker has let go of it."""
        hold = self.holds.get(job_id)
        if hold is not None:
            hold.stopped = now
            if self.port is not None:  # else it is told when it is back
                self.port.stop(job_id, hold.attempt)

    def let_go(self, job_id: JobId) -> None:
        """Note that it no longer has this run."""
        if (hold := self.holds.pop(job_id, None)) is not None:
            self.light_held -= hold.light


class Fleet:
    """All workers, by id and by endpoint."""

    def __init__(self) -> None:
        self._workers: dict[WorkerId, Worker] = {}
        self._ill: dict[WorkerId, tuple[EndpointId, float]] = {}

    def __iter__(self) -> Iterator[Worker]:
        return iter(tuple(self._workers.values()))

    def get(self, worker_id: WorkerId | None) -> Worker | None:
        """The worker by this id, connected or not."""
        return self._workers.get(worker_id) if worker_id is not None else None

    def add(self, worker: Worker) -> None:
        """A worker is here for the first time."""
        self._workers[worker.id] = worker
        self._ill.pop(worker.id, None)

    def remove(self, worker_id: WorkerId) -> None:
        """A worker is gone for good."""
        self._workers.pop(worker_id, None)

    def report(self, worker_id: WorkerId, endpoint: EndpointId, until: float) -> None:
        """A worker says that it cannot serve: it is shown as unhealthy until then, or until it is here again."""
        self._ill.pop(worker_id, None)
        self._ill[worker_id] = (endpoint, until)
        if len(self._ill) > MOST_ILL:
            del self._ill[next(iter(self._ill))]  # the one that said so first

    def unhealthy(self, endpoint: EndpointId, now: float) -> int:
        """How many workers of the endpoint have said so."""
        self._ill = {worker_id: ill for worker_id, ill in self._ill.items() if ill[1] > now}
        return sum(where == endpoint for where, _ in self._ill.values())

    def of(self, endpoint: EndpointId) -> list[Worker]:
        """The workers of an endpoint."""
        return [worker for worker in self._workers.values() if worker.endpoint == endpoint]

    def is_ready(self, endpoint: EndpointId) -> bool:
        """Whether any worker of the endpoint can serve."""
        return any(worker.is_ready for worker in self.of(endpoint))

    def running(self, endpoint: EndpointId) -> int:
        """How many workers of the endpoint can serve."""
        return sum(worker.is_ready for worker in self.of(endpoint))

    def next_free(self, endpoint: EndpointId) -> tuple[Worker, int] | None:
        """The least loaded worker with a free slot, and how many jobs it may be given before another one is less so."""
        free = sorted(
            (worker for worker in self.of(endpoint) if worker.credit),
            key=lambda worker: worker.held,
        )
        if not free:
            return None
        first = free[0]
        gap = free[1].held - first.held if len(free) > 1 else first.credit
        return first, min(first.credit, max(1, gap))

    def next_light(self, endpoint: EndpointId) -> Worker | None:
        """The worker with the most room for light jobs."""
        return max(
            (worker for worker in self.of(endpoint) if worker.light_credit),
            key=lambda worker: worker.light_credit,
            default=None,
        )
