"""The connected workers, the runs that each of them holds, and their credit.

A run ends here first: its slot becomes free, and its sink learns how it ended. Late messages, from
a worker that was considered lost or over a connection that was replaced, name a run that is not
held any longer and change nothing.
"""

import asyncio
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

import structlog

from proxy.jobs.lifecycle import Event
from proxy.jobs.model import EndpointId, JobError, JobId, JobState, Millis, WorkerId
from proxy.jobs.policy import WORKER_LOST, Ending, RunEnd, Verdict
from proxy.service.ports import OfferedJob, Signal, Sink, WorkerPort
from proxy.service.unhealthy import UnhealthyWorkers

log = structlog.get_logger()

OVERFLOW = JobError("answer_too_large", "The answer is larger than this endpoint passes on.")

# Bytes of request bodies on their way to one worker. Slots alone would not bound the memory.
UNSENT_MAX_BYTES = 32 * 1024 * 1024
# A full engine gets no job for at most this long.
FULL_MAX_SECONDS = 60.0
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


class Fleet:
    """All workers, by id and by endpoint. `signal` wakes the dispatcher of an endpoint.

    `unhealthy`: reports about workers, most of which are not here any longer. `has_queued` returns
    True if a job of an endpoint may be queued.
    """

    def __init__(self, signal: Signal) -> None:
        self._signal = signal
        self._workers: dict[WorkerId, Worker] = {}
        self._by_endpoint: defaultdict[EndpointId, dict[WorkerId, Worker]] = defaultdict(dict)
        self.unhealthy = UnhealthyWorkers()
        self.has_queued: Callable[[EndpointId], bool] = _always

    def __iter__(self) -> Iterator[Worker]:
        return iter(tuple(self._workers.values()))

    def get(self, worker_id: WorkerId | None) -> Worker | None:
        """Return the worker with this id, connected or not."""
        return self._workers.get(worker_id) if worker_id is not None else None

    def wake(self, endpoint: EndpointId) -> None:
        """Start a hand-out: the endpoint may have a new job or new credit."""
        self._signal.wake(endpoint)

    async def wait(self, endpoint: EndpointId, seconds: float) -> None:
        """Wait until a hand-out is to start, for at most `seconds`."""
        await self._signal.wait(endpoint, seconds)

    def add(self, worker: Worker) -> None:
        """Add a worker that has joined."""
        if (old := self._workers.get(worker.id)) and old.endpoint != worker.endpoint:
            del self._by_endpoint[old.endpoint][old.id]
        self._workers[worker.id] = worker
        self._by_endpoint[worker.endpoint][worker.id] = worker
        self.unhealthy.forget(worker.id)

    def remove(self, worker: Worker, why: str) -> None:
        """Remove a worker that is lost or has left, and end every run that it held as lost."""
        if self._workers.get(worker.id) is not worker:
            return
        del self._workers[worker.id]
        del self._by_endpoint[worker.endpoint][worker.id]
        log.info(
            "worker.gone",
            worker=worker.id,
            endpoint=worker.endpoint,
            why=why,
            jobs=len(worker.holds),
        )
        port = worker.port
        worker.port = None
        if port is not None:
            port.close(why)
        error = JobError(WORKER_LOST.code, f"The worker that ran this was lost: {why}.")
        for hold in tuple(worker.holds.values()):
            ending = Ending.LOST if hold.may_have_run else Ending.RELEASED
            hold.sink.end(hold.attempt, RunEnd(ending, error))

    def end_leases(self, now: float, lease: float) -> None:
        """Remove the workers whose lease has expired or whose process has ended."""
        for worker in self:
            if worker.has_exited:
                self.remove(worker, "its process ended")
            elif now - worker.seen > lease and (
                worker.port is None or worker.holds or worker.slots
            ):
                is_gone = worker.port is None
                why = "its connection was lost" if is_gone else f"silent for {lease:g} s"
                self.remove(worker, why)

    def restart_leases(self, now: float) -> None:
        """Start all leases again, and the grace periods of stopped runs."""
        for worker in self:
            worker.seen = now
            for hold in worker.holds.values():
                if hold.stopped is not None:
                    hold.stopped = now

    def end_run(
        self, worker: Worker, job_id: JobId, attempt: int, end: RunEnd
    ) -> asyncio.Task[None] | None:
        """Free the slot of a run that has ended; return as `Sink.end` does."""
        hold = worker.holds.get(job_id)
        if hold is None or hold.attempt != attempt:
            return None
        worker.release(job_id)
        if end.ending is Ending.FULL:
            self._note_full(worker, end.retry_after)
            end = end._replace(was_alone=not worker.held)
        if self.has_queued(worker.endpoint):
            self.wake(worker.endpoint)
        return hold.sink.end(attempt, end)

    def _note_full(self, worker: Worker, seconds: float) -> None:
        """Give a worker no more jobs than it holds now, for `seconds`: its engine is full.

        As soon as one of its runs has ended, it gets one job in its place.
        """
        wait = min(seconds, FULL_MAX_SECONDS)
        worker.full_at = worker.held
        worker.full_until = asyncio.get_running_loop().time() + wait
        log.info("worker.full", worker=worker.id, runs=worker.held, seconds=wait)

    def end_full(self, now: float) -> None:
        """Let the workers have jobs again whose engines were full; `now`: the event loop's time."""
        for worker in self._workers.values():
            if worker.full_at is not None and now >= worker.full_until:
                worker.full_at = None
                self.wake(worker.endpoint)

    def could_take(self, endpoint: EndpointId, *, is_form: bool = False) -> bool:
        """Return True if a connected worker can run such a job: see `Worker.could_take`."""
        return any(worker.could_take(is_form=is_form) for worker in self.of(endpoint))

    def cut_run(self, worker: Worker, job_id: JobId, attempt: int, end: RunEnd) -> None:
        """End a run of which no more output is wanted, and stop it.

        Its slot stays occupied until the worker has ended it.
        """
        hold = worker.holds.get(job_id)
        if hold is None or hold.attempt != attempt:
            return
        hold.sink.end(attempt, end)
        if hold.stopped is None:
            worker.stop(job_id, now=asyncio.get_running_loop().time())

    def stop_run(self, job: JobState) -> bool:
        """Stop the run of a job that has ended otherwise; return False if no worker holds it."""
        worker = self.get(job.worker)
        hold = worker.holds.get(job.id) if worker is not None else None
        if worker is not None and hold is not None:
            hold.sink.drop(hold.attempt)
            worker.stop(job.id, now=asyncio.get_running_loop().time())
        return hold is not None

    def of(self, endpoint: EndpointId) -> list[Worker]:
        """Return the workers of an endpoint."""
        return list(self._by_endpoint[endpoint].values())

    def is_ready(self, endpoint: EndpointId) -> bool:
        """Return True if a worker of the endpoint can serve."""
        return any(worker.is_ready for worker in self.of(endpoint))

    def running(self, endpoint: EndpointId) -> int:
        """Return the number of workers of the endpoint that can serve."""
        return sum(worker.is_ready for worker in self.of(endpoint))

    def credit(self, endpoint: EndpointId, *, light: bool) -> int:
        """Return the free slots of all workers of an endpoint."""
        workers = self.of(endpoint)
        return sum(worker.light_credit if light else worker.credit for worker in workers)

    def next_free(self, endpoint: EndpointId, *, light: bool) -> tuple[Worker, int] | None:
        """Return the next worker to get jobs, and the number of jobs to give it.

        It is the least loaded worker with a free slot, and gets as many jobs as make it as loaded
        as the next one. Light jobs go to the worker with the most free slots.
        """
        if light:
            first = max(self.of(endpoint), key=lambda worker: worker.light_credit, default=None)
            if first is None or not first.light_credit:
                return None
            return first, first.light_credit
        free = [
            (worker, credit)
            for worker in self._by_endpoint[endpoint].values()
            if (credit := worker.credit)
        ]
        if not free:
            return None
        if len(free) == 1:
            return free[0]
        free.sort(key=lambda one: one[0].held + one[0].reserved)
        (first, credit), (second, _) = free[:2]
        gap = second.held + second.reserved - first.held - first.reserved
        return first, min(credit, max(1, gap))


def _always(_: EndpointId) -> bool:
    return True


def log_loss(job: JobState, end: RunEnd, verdict: Verdict) -> None:
    """Log a run whose answer was lost, and the consequence for its job."""
    is_loss = end.ending is Ending.LOST or (
        end.ending is Ending.RELEASED and verdict.event is not Event.RELEASE
    )
    if is_loss and verdict.event is not Event.COMPLETE:
        log.warning(
            "run.lost",
            job=job.id,
            attempt=job.attempt,
            worker=job.worker,
            why=(end.error or WORKER_LOST).message,
            then=verdict.event,
        )
