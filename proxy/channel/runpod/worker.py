"""One stock worker. It says nothing of slots: its room is what its open poll asks for; between two it has none.

A poll that is held open until there is something to say.
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
from proxy.jobs.model import EndpointId, Job, JobId, Request, Work, WorkerId
from proxy.service.fleet import Load, Worker

log = structlog.get_logger()


class Poll:
    """One `job-take` or `job-stop` that waits for its answer."""

    def __init__(self, room: int = 0) -> None:
        self.room = room  # jobs that it may still be given
        self.jobs: list[Job] = []
        self.size = 0  # bytes of their bodies
        self.is_replaced = False
        self._ready = asyncio.Event()

    def give(self, job: Job) -> None:
        """A job for it. What else is given in this turn of the event loop goes with it."""
        self.jobs.append(job)
        self.size += len(job.submission.work.body)
        self.room -= 1
        self._ready.set()

    def end(self) -> None:
        """Answer it now."""
        self._ready.set()

    async def wait(self, seconds: float, receive: Any) -> bool:
        """Wait until it is to be answered. False when the other end has gone: an answer would reach nobody."""
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


REST_SECONDS = 1.0  # after a job that it cannot be given: others take that one meanwhile, and this one gets the next
REFRESH_SECONDS = (
    2.0  # a worker that wants to be made anew may end within that, and would take its jobs with it
)
REFRESH_HOLD = 0.5  # it ends when its polls are answered
STOPPED_HOLD = 1.0  # it says that it has let go of its jobs by asking anew


@dataclass(slots=True)
class PollingWorker(Worker):
    """A worker whose credit is the room of its open poll."""

    room: int = 0

    @property
    def credit(self) -> int:
        return self.room if self.is_writable else 0

    @property
    def light_credit(self) -> int:
        return self.credit

    @property
    def is_ready(self) -> bool:
        return self.is_open

    def load(self, *, light: bool) -> Load:  # noqa: ARG002 - all its jobs are alike
        return Load(len(self.holds), max(self.slots, len(self.holds)))


class RunListener(Protocol):
    """What a worker's channel knows to do with jobs that come to nothing here."""

    def give_back(self, worker: "RunpodWorker", job: Job) -> None:
        """It never got this job."""
        ...

    def refuse(self, worker: "RunpodWorker", job: Job) -> None:
        """No worker of its kind can do this job."""
        ...

    def recover(self, worker: "RunpodWorker", vanished: VanishedRun) -> None:
        """It had this job, and has it no more."""
        ...

    def wake(self, worker: "RunpodWorker") -> None:
        """It has more room."""
        ...


class RunpodWorker:
    """`WorkerPort` for a worker that polls. Outlives its membership of the fleet: it may come back."""

    def __init__(
        self, worker_id: WorkerId, endpoint: EndpointId, now: float, listener: RunListener
    ) -> None:
        self.id, self.endpoint = worker_id, endpoint
        self.member = PollingWorker(worker_id, endpoint, self, seen=now)
        self.life = Liveness(now)
        self.tracked = TrackedRuns()
        self.asked_at = now  # when its working process last asked for something
        self.shunned_until = 0.0
        self.is_closed = False
        self._listener = listener
        self._clock = asyncio.get_running_loop().time
        self._lines: dict[WatchedConnection, None] = {}
        self._taking: Poll | None = None
        self._stopping: Poll | None = None
        self._stops: list[str] = []
        self._rests_until = self._ends_until = 0.0

    # `WorkerPort`

    @property
    def backlog(self) -> int:
        return self._taking.size if self._taking is not None else 0

    def offer(self, job: Job) -> None:
        poll, work = self._taking, job.submission.work
        if (
            poll is not None
            and poll.room > 0
            and self.tracked.may_have(job.id)
            and not _is_form(work)
        ):
            answer = Answer(work.body) if isinstance(work, Request) else None
            self.tracked.give(job.id, Run(job.attempt, answer))
            poll.give(job)
        else:
            self._rests_until = self._clock() + REST_SECONDS
            (self._listener.refuse if _is_form(work) else self._listener.give_back)(self, job)
        self.refresh()

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

    def resume(self, job_id: JobId, attempt: int) -> None:
        if (run := self._run(job_id, attempt)) is not None:
            run.flow.set()

    def close(self, reason: str) -> None:
        log.debug("stock.closed", worker=self.id, why=reason)
        self.is_closed = True
        self._answer_polls()
        for run in self.tracked.runs.values():
            run.flow.set()

    # What it asks

    def rejoin(self, now: float) -> None:
        """It is here again, or for the first time."""
        self.tracked.lose()
        self._stops, self.is_closed = [], False
        self.member = PollingWorker(self.id, self.endpoint, self, seen=now)

    def asks(self, line: WatchedConnection) -> None:
        """A request of its working process came on this connection."""
        self.asked_at = self.life.heard = self._clock()
        if line not in self._lines:
            self._lines[line] = None
            self.life.opened()
            line.watch(lambda closing: self._closed(line, closing))

    def take(self, wanted: int, *, is_idle: bool) -> Poll:
        """It polls for jobs. There is one poll at a time: another one is of an older or of another process."""
        if is_idle:
            self._recover(self.tracked.idles(self.life.died_at))
        if self._taking is not None:
            log.warning(
                "stock.polls_twice",
                worker=self.id,
                hint="every worker needs a RUNPOD_POD_ID of its own",
            )
            self._taking.is_replaced = True
            self._taking.end()
        self._taking = Poll(wanted)
        self.member.slots = len(self.member.holds) + wanted
        self.refresh()
        return self._taking

    def taken(self, poll: Poll) -> list[Job]:
        """A poll is about to be answered, with these jobs."""
        if self._taking is poll:
            self._taking = None
            self.refresh()
        runs = self.tracked.runs
        stopped = [job for job in poll.jobs if (run := runs.get(job.id)) is None or run.is_stopped]
        self.missed(stopped)
        return [job for job in poll.jobs if job not in stopped]

    def missed(self, jobs: Sequence[Job]) -> None:
        """It did not get these jobs."""
        for job in jobs:
            self.tracked.runs.pop(job.id, None)
            self._listener.give_back(self, job)

    def got(self, jobs: Sequence[Job]) -> None:
        """These jobs have been written to it."""
        for job in jobs:
            if (run := self.tracked.runs.get(job.id)) is not None:
                run.given_at = self._clock()

    def listen(self) -> Poll:
        """It polls for jobs to stop."""
        self._stopping = Poll()
        if self._stops:
            self._stopping.end()
        return self._stopping

    def stops(self, poll: Poll) -> list[str]:
        """A poll is about to be answered, with these jobs to stop."""
        if self._stopping is poll:
            self._stopping = None
        stops, self._stops = self._stops, []
        return stops

    def pinged(self, listed: frozenset[str]) -> None:
        """A ping came; it lists what the worker has."""
        self.life.heard = now = self._clock()
        self._recover(self.tracked.pinged(listed, now, self.asked_at, self.life.died_at))
        for job_id, run in self.tracked.runs.items():
            if (
                run.is_stopped and job_id in listed
            ):  # it may have been too early: the SDK stops only what it has begun
                self._ask_to_stop(job_id)

    def refreshes(self) -> None:
        """It has said that it is to be made anew after this job. What ends it is its own affair."""
        self._rests_until = self._ends_until = self._clock() + REFRESH_SECONDS
        self.refresh()
        self._answer_polls()

    def hold(self, seconds: float) -> float:
        """How long a poll of it is held."""
        return min(seconds, REFRESH_HOLD) if self._clock() < self._ends_until else seconds

    def hold_take(self, seconds: float) -> float:
        """How long a poll for jobs is held."""
        is_stopping = any(run.is_stopped for run in self.tracked.runs.values())
        return min(self.hold(seconds), STOPPED_HOLD) if is_stopping else self.hold(seconds)

    def refresh(self) -> None:
        """Tell the fleet how many jobs it may be given now."""
        is_resting = self._clock() < self._rests_until
        room = (
            self._taking.room
            if self._taking is not None and not is_resting and not self.is_closed
            else 0
        )
        if room > self.member.room:
            self._listener.wake(self)
        self.member.room = max(0, room)

    def _run(self, job_id: JobId, attempt: int) -> Run | None:
        run = self.tracked.runs.get(job_id)
        return run if run is not None and run.attempt == attempt else None

    def _recover(self, vanished: Iterable[VanishedRun]) -> None:
        for one in vanished:
            self._listener.recover(self, one)

    def _ask_to_stop(self, job_id: str) -> None:
        if job_id not in self._stops:
            self._stops.append(job_id)
        if self._stopping is not None:
            self._stopping.end()

    def _answer_polls(self) -> None:
        for poll in (self._taking, self._stopping):
            if poll is not None:
                poll.end()

    def _closed(self, line: WatchedConnection, closing: Closing) -> None:
        self._lines.pop(line, None)
        self.life.closed(closing, self._clock())
        log.debug(
            "stock.line_closed", worker=self.id, lines=self.life.lines, abrupt=closing.is_abrupt
        )


def _is_form(work: Work) -> bool:
    return isinstance(work, Request) and work.content_type.lower().startswith("multipart/")
