"""The ends of runs, and their consequences for the job and its client.

A run ends in one of four ways (`wire.frames.Ending`), or is lost with its worker.
`jobs.policy.after_loss` decides the consequence of a loss; this module carries it out. Every write
names the attempt, so a late message, from a worker that was considered lost or over a connection
that was replaced, changes nothing.
"""

import asyncio
from collections.abc import Callable, Iterable

import structlog

from proxy.jobs.lifecycle import Event
from proxy.jobs.model import Job, JobError, JobId, Outcome
from proxy.jobs.policy import after_loss
from proxy.service.clock import Clock
from proxy.service.dispatch import Dispatch
from proxy.service.events import JobEvents
from proxy.service.fleet import Fleet, Worker
from proxy.service.mailbox import Mailbox, Mailboxes
from proxy.service.recorder import Recorder
from proxy.store.base import JobStore

log = structlog.get_logger()

WORKER_LOST = JobError("worker_lost", "The worker that ran this was lost.")
OVERFLOW = JobError("answer_too_large", "The answer is larger than this endpoint passes on.")


class RunEndings:
    def __init__(
        self,
        store: JobStore,
        fleet: Fleet,
        mailboxes: Mailboxes,
        recorder: Recorder,
        events: JobEvents,
        dispatch: Dispatch,
        clock: Clock,
    ) -> None:
        self._store = store
        self._fleet = fleet
        self._mailboxes = mailboxes
        self._recorder = recorder
        self._events = events
        self._dispatch = dispatch
        self._clock = clock
        self.on_delivery: Callable[[], None] = _nothing
        """Called when a job with a webhook has ended."""

    async def completed(
        self, worker: Worker, job_id: JobId, attempt: int, output: bytes | None = None
    ) -> None:
        """Complete the job: the engine's answer is complete. `output`: the job's output, if it was
        sent as a whole.
        """
        self._free_slot(worker, job_id, attempt)
        recorded = await self._recorder.close(job_id, attempt)
        output = recorded if output is None else output
        await self._finish(job_id, attempt, Event.COMPLETE, Outcome(answered=True), output)

    async def failed(self, worker: Worker, job_id: JobId, attempt: int, error: JobError) -> None:
        """Fail the job: the engine's answer is complete and reports an error."""
        self._free_slot(worker, job_id, attempt)
        output = await self._recorder.close(job_id, attempt)
        await self._finish(job_id, attempt, Event.FAIL, Outcome(answered=True, error=error), output)

    async def refused(self, worker: Worker, job_id: JobId, attempt: int, error: JobError) -> None:
        """Fail the job: the run ended without a usable answer, and another run would end in the
        same way.
        """
        self._free_slot(worker, job_id, attempt)
        await self._finish(job_id, attempt, Event.FAIL, Outcome(answered=False, error=error))

    async def released(self, worker: Worker, job_id: JobId, attempt: int) -> None:
        """Requeue a job that the worker hands back. It is a loss if the client has received output
        of the run.
        """
        mailbox = self._free_slot(worker, job_id, attempt)
        job = await self._store.find(job_id) if mailbox is None else None
        if (mailbox is not None and mailbox.left) or (job is not None and job.consumed_cursor):
            await self._lose(worker, job_id, attempt, WORKER_LOST)
        else:
            await self._requeue(job_id, attempt, counts=False)

    async def lost(
        self, worker: Worker, job_id: JobId, attempt: int, error: JobError = WORKER_LOST
    ) -> None:
        """Handle the loss of a run: it will not be answered."""
        self._free_slot(worker, job_id, attempt)
        await self._lose(worker, job_id, attempt, error)

    async def undelivered(self, worker: Worker, job_id: JobId, attempt: int) -> None:
        """Requeue a job that did not reach its worker. It did not run, so no failure is counted."""
        self._free_slot(worker, job_id, attempt)
        await self._requeue(job_id, attempt, counts=False)

    async def output_lost(self, worker: Worker, job_id: JobId, attempt: int) -> None:
        """Handle the loss of some of a run's output in transit. Its slot stays occupied until the
        worker has ended it.
        """
        await self._lose(
            worker,
            job_id,
            attempt,
            JobError(WORKER_LOST.code, "Output was lost with a connection."),
        )

    async def orphaned(self, job: Job) -> None:
        """End a run from before the start of this proxy that no worker has resumed. No failure is
        counted.
        """
        if job.consumed_cursor:
            error = JobError(
                WORKER_LOST.code, "The worker that ran this did not come back after a restart."
            )
            await self._finish(
                job.id, job.attempt, Event.FAIL, Outcome(answered=False, error=error)
            )
        else:
            await self._requeue(job.id, job.attempt, counts=False)

    async def passed_on(self, job_id: JobId, attempt: int) -> None:
        """Complete a job whose client has the whole answer although the worker does not end the
        run; stop the run.
        """
        job = await self._finish(job_id, attempt, Event.COMPLETE, Outcome(answered=True))
        if job is not None and (worker := self._fleet.get(job.worker)) is not None:
            worker.stop(job_id, now=asyncio.get_running_loop().time())

    async def overflowed(self, worker: Worker, job_id: JobId, attempt: int) -> None:
        """Fail the job and stop the run: its answer is too large."""
        await self.cut(worker, job_id, attempt, OVERFLOW)

    async def cut(self, worker: Worker, job_id: JobId, attempt: int, error: JobError) -> None:
        """Fail the job and stop the run: its output is unusable. Its slot stays occupied until the
        worker has ended it.
        """
        await self._finish(job_id, attempt, Event.FAIL, Outcome(answered=False, error=error))
        hold = worker.holds.get(job_id)
        if hold is not None and hold.attempt == attempt:
            worker.stop(job_id, now=asyncio.get_running_loop().time())

    async def remove_worker(self, worker: Worker, why: str) -> None:
        """Remove a lost worker, and handle the loss of every run that it held."""
        if self._fleet.get(worker.id) is not worker:
            return
        self._fleet.remove(worker.id)
        log.info(
            "worker.gone",
            worker=worker.id,
            endpoint=worker.endpoint,
            why=why,
            jobs=len(worker.holds),
        )
        port, worker.port = worker.port, None
        if port is not None:
            port.close(why)
        error = JobError(WORKER_LOST.code, f"The worker that ran this was lost: {why}.")
        for job_id, hold in list(worker.holds.items()):
            await self._lose(worker, job_id, hold.attempt, error)

    def withdraw(self, jobs: Iterable[Job], error: JobError) -> None:
        """Inform the clients of jobs that were cancelled, purged or have expired, and stop their
        runs.
        """
        now = asyncio.get_running_loop().time()
        for job in jobs:
            self._recorder.drop(job.id)
            self._notify(job)
            if (mailbox := self._mailboxes.get(job.id)) is not None:
                mailbox.end(Outcome(answered=False, error=error))
            if (worker := self._fleet.get(job.worker)) is not None:
                worker.stop(job.id, now=now)

    def _free_slot(self, worker: Worker, job_id: JobId, attempt: int) -> Mailbox | None:
        hold = worker.holds.get(job_id)
        if hold is not None and hold.attempt == attempt:
            worker.release(job_id)
            self._dispatch.wake(worker.endpoint)
        return self._mailboxes.sink(job_id, attempt)

    async def _lose(self, worker: Worker, job_id: JobId, attempt: int, error: JobError) -> None:
        job = await self._store.find(job_id)
        if job is None or job.attempt != attempt or job.is_terminal:
            return
        mailbox = self._mailboxes.sink(job_id, attempt)
        if mailbox is not None and mailbox.is_whole:  # there is nothing left to lose
            await self._finish(job_id, attempt, Event.COMPLETE, Outcome(answered=True))
            return
        has_left = mailbox.left if mailbox is not None else job.consumed_cursor > 0
        verdict = after_loss(job, error, output_left=has_left)
        log.warning(
            "run.lost",
            job=job_id,
            attempt=attempt,
            worker=worker.id,
            why=error.message,
            then=verdict.event,
        )
        if verdict.event is Event.RELEASE:
            await self._requeue(job_id, attempt, counts=True)
        else:
            await self._finish(
                job_id, attempt, verdict.event, Outcome(answered=False, error=verdict.error)
            )

    async def _requeue(self, job_id: JobId, attempt: int, *, counts: bool) -> None:
        now = self._clock.now()
        job = await self._store.settle(
            job_id, Event.RELEASE, now=now, attempt=attempt, counts=counts
        )
        if job is None:
            return
        self._recorder.drop(job_id)
        self._events.notify(job_id)
        if (mailbox := self._mailboxes.sink(job_id, attempt)) is not None:
            mailbox.requeue()
        self._dispatch.wake(job.endpoint)

    async def _finish(
        self,
        job_id: JobId,
        attempt: int,
        event: Event,
        outcome: Outcome,
        output: bytes | None = None,
    ) -> Job | None:
        settled = await self._store.settle(
            job_id,
            event,
            now=self._clock.now(),
            attempt=attempt,
            error=outcome.error,
            output=output,
        )
        if settled is None:
            log.debug("run.late", job=job_id, attempt=attempt, ending=event)
            return None
        self._recorder.drop(job_id)
        self._notify(settled)
        if (mailbox := self._mailboxes.sink(job_id, attempt)) is not None:
            mailbox.end(outcome)
        return settled

    def _notify(self, job: Job) -> None:
        """Notify the subscribers of a job that has ended, and start its webhook."""
        self._events.notify(job.id)
        if job.submission.webhook is not None:
            self.on_delivery()


def _nothing() -> None:
    pass
