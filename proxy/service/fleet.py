"""The connected workers, by endpoint, and the ends of their runs.

A run ends here first: its slot becomes free, and its sink learns how it ended. Late messages, from
a worker that was considered lost or over a connection that was replaced, name a run that is not
held any longer and change nothing.
"""

import asyncio
from collections import defaultdict
from collections.abc import Callable, Iterator

import structlog

from proxy.jobs.lifecycle import Event
from proxy.jobs.model import EndpointId, JobError, JobId, JobState, WorkerId
from proxy.jobs.policy import WORKER_LOST, Ending, RunEnd, Verdict
from proxy.service.ports import Signal
from proxy.service.unhealthy import UnhealthyWorkers
from proxy.service.worker import Worker

log = structlog.get_logger()

OVERFLOW = JobError(
    "answer_too_large", "The answer is too large for this endpoint. Request less output."
)

# A full engine gets no job for at most this long.
FULL_MAX_SECONDS = 60.0


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
    ) -> asyncio.Task[bool] | None:
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
        first = self.least_loaded(endpoint)
        if first is None:
            return None
        others = [
            worker.occupied
            for worker in self._by_endpoint[endpoint].values()
            if worker is not first and worker.credit
        ]
        if not others:
            return first, first.credit
        return first, min(first.credit, max(1, min(others) - first.occupied))

    def least_loaded(self, endpoint: EndpointId) -> Worker | None:
        """Return the worker with the fewest occupied slots of those with a free one; of several,
        the first that has joined.
        """
        found: Worker | None = None
        least = 0
        for worker in self._by_endpoint[endpoint].values():
            occupied = worker.occupied
            # The credit takes longer to compute.
            if (found is None or occupied < least) and worker.credit:
                found = worker
                least = occupied
        return found


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
