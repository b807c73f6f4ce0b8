"""One Runpod worker, and its long polls.

A Runpod worker does not report slots: its capacity is the number of jobs that its open poll asks
for, and zero between two polls.
"""

import asyncio
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import structlog

from proxy.channel.runpod.openai import Answer
from proxy.channel.runpod.tracking import (
    Closing,
    Liveness,
    Run,
    TrackedRuns,
    VanishedRun,
    WatchedConnection,
)
from proxy.jobs.model import EndpointId, JobId, Request, WorkerId
from proxy.jobs.policy import is_form
from proxy.service.ports import OfferedJob
from proxy.service.worker import Load, Worker

log = structlog.get_logger()


class Poll:
    """One long poll: a pending `job-take` or `job-stop` request."""

    def __init__(self, capacity: int = 0) -> None:
        # The number of jobs that it can still take.
        self.capacity = capacity
        self.jobs: list[OfferedJob] = []
        # The total size of their bodies in bytes.
        self.size = 0
        self.is_replaced = False
        self._ready = asyncio.Event()

    def give(self, job: OfferedJob) -> None:
        """Add a job to the response.

        Jobs added in the same turn of the event loop are sent together.
        """
        self.jobs.append(job)
        self.size += len(job.submission.work.body)
        self.capacity -= 1
        self._ready.set()

    def end(self) -> None:
        """Respond to the poll now."""
        self._ready.set()

    async def wait(self, seconds: float, receive: Any) -> bool:
        """Wait up to `seconds` until a response is due.

        Returns False if the client has disconnected.
        """
        gone = asyncio.ensure_future(_gone(receive))
        ready = asyncio.ensure_future(self._ready.wait())
        try:
            await asyncio.wait({gone, ready}, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
            return not gone.done()
        finally:
            gone.cancel()
            ready.cancel()


async def _gone(receive: Any) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


# The pause after a job that a worker cannot take: other workers take that job in the meantime, and
# this worker gets the next one.
REST_SECONDS = 1.0
# A worker that asked to be restarted may exit within this time, and would lose new jobs.
REFRESH_SECONDS = 2.0
# A worker that is about to restart exits when its polls have been answered.
REFRESH_POLL_SECONDS = 0.5
# A worker with an old SDK never asks for the jobs to stop.
MAX_STOPS = 1_000
# A worker reports that it has dropped a stopped job by sending the next poll.
STOPPED_POLL_SECONDS = 1.0


@dataclass(slots=True)
class PollingWorker(Worker):
    """A worker whose credit is the remaining capacity of its open poll."""

    capacity: int = 0

    @property
    def announces_models(self) -> bool:
        return False

    @property
    def credit(self) -> int:
        capacity = (
            self.capacity if self.full_at is None else min(self.capacity, self.full_at - self.held)
        )
        return max(0, capacity - self.reserved) if self.is_writable else 0

    @property
    def light_credit(self) -> int:
        return max(0, self.credit - self.light_reserved)

    @property
    def is_ready(self) -> bool:
        return self.is_open

    def load(self, *, light: bool) -> Load:  # noqa: ARG002 - all jobs count the same
        return Load(len(self.holds), max(self.slots, len(self.holds)))

    def could_take(self, *, is_form: bool) -> bool:
        """Return as `Worker.could_take`; no Runpod worker can run a multipart form."""
        return self.is_ready and not self.is_full and not is_form


class RunListener(Protocol):
    """Receives the jobs that a worker did not complete, and its changes of capacity."""

    def give_back(self, worker: "RunpodWorker", job: OfferedJob) -> None:
        """Return a job to the queue that was never delivered to the worker."""
        ...

    def refuse(self, worker: "RunpodWorker", job: OfferedJob) -> None:
        """Handle a job that Runpod workers cannot run."""
        ...

    def fail_unreadable(self, worker: "RunpodWorker", job: OfferedJob) -> None:
        """Fail a job whose secrets cannot be decrypted."""
        ...

    def recover(self, worker: "RunpodWorker", vanished: VanishedRun) -> None:
        """Handle a job that the worker had and has dropped."""
        ...

    def wake(self, worker: "RunpodWorker") -> None:
        """Wake the dispatcher: the worker has more capacity."""
        ...


class RunpodWorker:
    """`WorkerPort` for a polling worker. It outlives the worker's membership of the fleet."""

    def __init__(
        self, worker_id: WorkerId, endpoint: EndpointId, now: float, listener: RunListener
    ) -> None:
        self.id = worker_id
        self.endpoint = endpoint
        self.member = PollingWorker(worker_id, endpoint, self, seen=now)
        self.life = Liveness(now)
        self.tracked = TrackedRuns()
        # The time of the last request from its worker process.
        self.asked_at = now
        self.excluded_until = 0.0
        self.is_closed = False
        self._listener = listener
        self._clock = asyncio.get_running_loop().time
        self._connections: dict[WatchedConnection, None] = {}
        self._taking: Poll | None = None
        self._stopping: Poll | None = None
        self._stops: list[str] = []
        self._rests_until = 0.0
        self._ends_until = 0.0
        # Held while it resumes a run.
        self.adopting = asyncio.Lock()

    # `WorkerPort`

    @property
    def backlog(self) -> int:
        return self._taking.size if self._taking is not None else 0

    def offer(self, job: OfferedJob) -> None:
        poll, work = self._taking, job.submission.work
        if (
            poll is not None
            and poll.capacity > 0
            and self.tracked.may_have(job.id)
            and not is_form(work)
        ):
            answer = Answer(work.body) if isinstance(work, Request) else None
            self.tracked.give(job.id, Run(job.attempt, answer))
            # An earlier run of this job has ended before it was stopped.
            self._stops = [job_id for job_id in self._stops if job_id != job.id]
            poll.give(job)
        else:
            self._rests_until = self._clock() + REST_SECONDS
            (self._listener.refuse if is_form(work) else self._listener.give_back)(self, job)
        self.update_capacity()

    def stop(self, job_id: JobId, attempt: int) -> None:
        if (run := self._run(job_id, attempt)) is not None:
            run.is_stopped = True
            run.flow.set()
            self._ask_to_stop(job_id)
            if self._taking is not None:
                self._taking.end()

    def pause(self, job_id: JobId, attempt: int) -> None:
        if (run := self._run(job_id, attempt)) is not None and not run.is_stopped:
            run.flow.clear()

    def acknowledge(self, job_id: JobId, attempt: int, confirmed: int) -> None:
        """Do nothing: such a worker keeps no output."""

    def resume(
        self,
        job_id: JobId,
        attempt: int,
        acknowledged: int,  # noqa: ARG002 - a post waits for its response
        confirmed: int,  # noqa: ARG002
    ) -> None:
        if (run := self._run(job_id, attempt)) is not None:
            run.flow.set()

    def close(self, reason: str) -> None:
        log.debug("stock.closed", worker=self.id, why=reason)
        self.is_closed = True
        self._answer_polls()
        for run in self.tracked.runs.values():
            run.flow.set()

    # Requests from the worker

    def rejoin(self, now: float) -> None:
        """Start a new membership of the fleet, for a new or returning worker."""
        self.tracked.lose(now)
        self._stops, self.is_closed = [], False
        self.member = PollingWorker(self.id, self.endpoint, self, seen=now)

    def restart_lease(self, now: float) -> None:
        """Start its lease again after a pause of the proxy."""
        self.asked_at = now
        self.life.restart(now)
        self.tracked.restart(now)

    def on_request(self, connection: WatchedConnection) -> None:
        """Record a request from its worker process on this connection."""
        self.asked_at = self.life.heard = self._clock()
        if connection not in self._connections:
            self._connections[connection] = None
            self.life.opened()
            connection.watch(lambda closing: self._closed(connection, closing))

    def post_answered(self, job_id: JobId, connection: WatchedConnection) -> None:
        """Record that a post about this job has been answered over this connection."""
        run = self.tracked.runs.get(job_id)
        if run is not None and connection in self._connections:
            run.posted.answered(connection)
        elif run is not None:
            # It was closed before the post was processed.
            run.posted.closed(connection, self._clock())

    def on_poll(self, wanted: int, *, is_idle: bool) -> Poll:
        """Open a poll for jobs.

        A worker has one poll at a time: a second one comes from an older or another process.
        """
        if is_idle:
            self._recover(self.tracked.on_idle_poll(self.life.died_at))
        if self._taking is not None:
            log.warning(
                "stock.polls_twice",
                worker=self.id,
                hint="every worker needs its own RUNPOD_POD_ID",
            )
            self._taking.is_replaced = True
            self._taking.end()
        self._taking = Poll(wanted)
        self.member.slots = len(self.member.holds) + wanted
        self.update_capacity()
        return self._taking

    def close_poll(self, poll: Poll) -> list[OfferedJob]:
        """Close a poll for jobs and return the jobs of its response."""
        if self._taking is poll:
            self._taking = None
            self.update_capacity()
        runs = self.tracked.runs
        stopped = [job for job in poll.jobs if (run := runs.get(job.id)) is None or run.is_stopped]
        self.poll_failed(stopped)
        return [job for job in poll.jobs if job not in stopped]

    def poll_failed(self, jobs: Sequence[OfferedJob]) -> None:
        """Return these jobs to the queue: they were not delivered."""
        for job in jobs:
            self.tracked.runs.pop(job.id, None)
            self._listener.give_back(self, job)

    def cannot_read(self, jobs: Sequence[OfferedJob]) -> None:
        """Fail these jobs, whose secrets cannot be decrypted: they were not delivered."""
        for job in jobs:
            self.tracked.runs.pop(job.id, None)
            self._listener.fail_unreadable(self, job)

    def poll_answered(self, jobs: Sequence[OfferedJob]) -> None:
        """Record that these jobs have been written to the worker."""
        for job in jobs:
            if (run := self.tracked.runs.get(job.id)) is not None:
                run.given_at = self._clock()

    def on_stop_poll(self) -> Poll:
        """Open a poll for jobs to stop."""
        self._stopping = Poll()
        if self._stops:
            self._stopping.end()
        return self._stopping

    def pending_stops(self, poll: Poll) -> list[str]:
        """Close a poll for jobs to stop and return the ids of those jobs."""
        if self._stopping is poll:
            self._stopping = None
        stops, self._stops = self._stops, []
        return stops

    def on_ping(self, listed: frozenset[str], orphans: frozenset[str] = frozenset()) -> None:
        """Process a ping, which lists the jobs of the worker. `orphans`: those of them that it may
        still resume.
        """
        self.life.heard = now = self._clock()
        self._recover(self.tracked.on_ping(listed, now, self.asked_at, self.life.died_at))
        for job_id, run in self.tracked.runs.items():
            # The first request may have been too early: the SDK stops only started jobs.
            if run.is_stopped and job_id in listed:
                self._ask_to_stop(job_id)
        # An orphan is not listed as one while it is being resumed.
        if not self.adopting.locked():
            for foreign_id in self.tracked.on_foreign(listed - orphans):
                self._ask_to_stop(foreign_id)

    def on_refresh(self) -> None:
        """Prepare for a restart of the worker, which asked for one after its current job."""
        self._rests_until = self._ends_until = self._clock() + REFRESH_SECONDS
        self.update_capacity()
        self._answer_polls()

    def poll_timeout(self, seconds: float) -> float:
        """Return the timeout of a poll of this worker, in seconds."""
        return min(seconds, REFRESH_POLL_SECONDS) if self._clock() < self._ends_until else seconds

    def job_poll_timeout(self, seconds: float) -> float:
        """Return the timeout of a poll for jobs, in seconds."""
        is_stopping = any(run.is_stopped for run in self.tracked.runs.values())
        return (
            min(self.poll_timeout(seconds), STOPPED_POLL_SECONDS)
            if is_stopping
            else self.poll_timeout(seconds)
        )

    def update_capacity(self) -> None:
        """Update the capacity that the fleet sees."""
        is_resting = self._clock() < self._rests_until
        capacity = (
            self._taking.capacity
            if self._taking is not None and not is_resting and not self.is_closed
            else 0
        )
        if capacity > self.member.capacity:
            self._listener.wake(self)
        self.member.capacity = max(0, capacity)

    def _run(self, job_id: JobId, attempt: int) -> Run | None:
        run = self.tracked.runs.get(job_id)
        return run if run is not None and run.attempt == attempt else None

    def _recover(self, vanished: Iterable[VanishedRun]) -> None:
        for one in vanished:
            self._listener.recover(self, one)

    def _ask_to_stop(self, job_id: str) -> None:
        if job_id not in self._stops and len(self._stops) < MAX_STOPS:
            self._stops.append(job_id)
        if self._stopping is not None:
            self._stopping.end()

    def _answer_polls(self) -> None:
        for poll in (self._taking, self._stopping):
            if poll is not None:
                poll.end()

    def _closed(self, connection: WatchedConnection, closing: Closing) -> None:
        self._connections.pop(connection, None)
        now = self._clock()
        self.life.closed(closing, now)
        for run in self.tracked.runs.values():
            run.posted.closed(connection, now)
        log.debug(
            "stock.line_closed",
            worker=self.id,
            lines=self.life.connections,
            abrupt=closing.is_abrupt,
        )
