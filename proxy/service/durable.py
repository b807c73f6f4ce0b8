"""Durable jobs: their runs, and the operations of clients that change them.

A job is taken from the store, and its end is written to the store. Every write about a run carries
its number (`Job.run`), so a late end, of a run that was replaced or adopted, changes nothing. A job
of another owner is treated like an unknown one. `job_view` reads jobs.
"""

import asyncio
from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from functools import partial

import structlog

from proxy.jobs.job_request import KEY_RETENTION, RETENTION, SYNC_RETENTION, JobRequest
from proxy.jobs.lifecycle import Event, Status, advance
from proxy.jobs.model import (
    EndpointId,
    Ids,
    Input,
    Job,
    JobError,
    JobId,
    Millis,
    Owner,
    Submission,
    WorkerId,
)
from proxy.jobs.policy import CANCELLED, WORKER_LOST, Ending, RunEnd, Verdict, after_run, overdue
from proxy.service.background import Background, insist
from proxy.service.clock import Clock
from proxy.service.endpoints import Endpoint
from proxy.service.events import JobEvents
from proxy.service.fleet import Fleet, log_loss
from proxy.service.job_turns import JobTurns
from proxy.service.job_view import JobView, ReadLimits
from proxy.service.recorder import Recorder, Recording
from proxy.service.refusals import Refusals
from proxy.store.base import JobStore
from proxy.store.errors import StoreGoneError

log = structlog.get_logger()

# Jobs in one request to the store. A round repeats the request until no job is due.
BATCH_JOBS = 1_000
# Jobs that are ended between the write and the hold of a take; a take has at most 64.
ENDED_EARLY_MAX_JOBS = 1_000
NOT_RESUMED = JobError(
    WORKER_LOST.code, "The proxy was restarted, and the worker that ran this job did not reconnect."
)


class DurableRuns:
    def __init__(
        self,
        store: JobStore,
        recorder: Recorder,
        events: JobEvents,
        fleet: Fleet,
        background: Background,
        clock: Clock,
    ) -> None:
        self._store = store
        self._recorder = recorder
        self._events = events
        self._fleet = fleet
        self._background = background
        self._clock = clock
        # Running jobs that were ended while no worker held them, and the numbers of their runs.
        self._ended_early: OrderedDict[JobId, int] = OrderedDict()
        self._refusals = Refusals(fleet)
        self.on_delivery: Callable[[], None] = lambda: None
        """Called when a job with a webhook has ended."""

    # Called by the dispatcher

    async def take(
        self, endpoint: EndpointId, worker: WorkerId, limit: int, *, light: bool, run: int
    ) -> list[Job]:
        """Take up to `limit` jobs for a worker; `run` is the new number of their runs.

        The caller holds them in the same turn of the event loop.
        """
        limits = {"limit": 0, "light_limit": limit} if light else {"limit": limit, "light_limit": 0}
        jobs = await self._store.take(endpoint, worker, now=self._clock.now(), run=run, **limits)
        return [job for job in jobs if not self.has_ended(job)]

    def has_ended(self, job: Job) -> bool:
        """Return True if a job has ended after its run had begun in the store, and before a worker
        holds the run. Two writes that the store carries out together may return in either order.
        The answer is True once for each run.
        """
        return self._ended_early.pop(job.id, None) == job.run

    def record(self, job: Job, position: int = 0) -> Recording:
        """Open the recording of a run that begins, or that a worker has resumed.

        `position`: the number of elements that the store has of it.
        """
        self._events.notify_progress(job.id)
        return self._recorder.open(job, self._start_end, position)

    def give_back(self, job: Job) -> None:
        """Return a job to the queue that was taken and not handed out."""
        end = RunEnd(Ending.RELEASED)
        self._background.start(
            insist(partial(self._apply, job.id, job.run, after_run(end))), f"give back {job.id}"
        )

    # Called by the queue API

    def queued_again(self, job: Job) -> None:
        """Note that a job was put into the queue: it is new, or a client has retried it."""
        self._events.notify_progress(job.id)
        self._fleet.wake(job.endpoint)

    async def cancel(self, job: Job) -> Job | None:
        """Cancel a job, with the output that it has; return None if it has ended already."""
        if (recording := self._recorder.get(job.id)) is not None:
            await self._recorder.flush(recording)
        ended = await self._store.settle(job.id, Event.CANCEL, now=self._clock.now())
        if ended is not None:
            self.withdrawn([ended])
        return ended

    def stop(self, job: Job) -> None:
        """Stop the run of a job that has ended, if a worker still holds it."""
        self._fleet.stop_run(job)

    # The ends of runs and jobs

    def _start_end(self, recording: Recording, end: RunEnd) -> asyncio.Task[bool]:
        was_refused = end.ending is Ending.FULL and end.was_alone
        if was_refused and not self._refusals.may_wait(recording.endpoint, recording.job_id):
            end = end._replace(ending=Ending.FAILED)
        # In the background, so that a write to the disk does not block the worker's other jobs.
        task = self._background.start(self._write_end(recording, end), f"end {recording.job_id}")
        # Also if the end could not be written.
        task.add_done_callback(lambda _: self._recorder.drop(recording))
        return task

    async def _write_end(self, recording: Recording, end: RunEnd) -> None:
        try:
            await insist(partial(self._end_run, recording, end))
        except StoreGoneError:
            # Final, so that its worker does not keep the result.
            if end.ending in (Ending.COMPLETED, Ending.FAILED):
                log.error("result.lost", job=recording.job_id, attempt=recording.attempt)  # noqa: TRY400

    async def _end_run(self, recording: Recording, end: RunEnd) -> None:
        """Carry out the end of a run: its job ends, or returns to the queue."""
        job_id = recording.job_id
        run = recording.run
        output = end.output
        verdict = after_run(end)
        job: Job | None = None
        match end.ending:
            case Ending.COMPLETED | Ending.FAILED:
                # Its readers are notified of the output and of the end at once.
                await self._recorder.flush(recording, notify=False)
                output = recording.whole if output is None else output
                correction = end.correction
                if correction and not await self._recorder.correct(recording, correction):
                    verdict = after_run(end._replace(ending=Ending.FAILED))
            case Ending.RELEASED | Ending.LOST | Ending.FULL:
                job = await self._store.find(job_id)
                if job is not None and job.run == run and not job.is_terminal:
                    verdict = after_run(end, job.failures, output_left=job.delivered)
        has_applied = await self._apply(job_id, run, verdict, output)
        if not has_applied and verdict.event is Event.RELEASE:
            # Either the job has ended, or output was delivered after the decision.
            verdict = after_run(end, output_left=True)
            has_applied = await self._apply(job_id, run, verdict)
        if has_applied and job is not None:
            log_loss(job, end, verdict)

    def orphaned(self, job: Job, runs: Sequence[int]) -> None:
        """End a run from before the start of this proxy that no worker has resumed.

        `runs`: its possible numbers. No failure is counted.
        """
        write = partial(self._end_orphan, job, runs)
        self._background.start(insist(write), f"end orphan {job.id}")

    async def _end_orphan(self, job: Job, runs: Sequence[int]) -> None:
        end = RunEnd(Ending.RELEASED, NOT_RESUMED)
        for verdict in (after_run(end), after_run(end, output_left=True)):
            for run in runs:
                if await self._apply(job.id, run, verdict):
                    return

    async def end_overdue(self) -> None:
        """End the jobs whose deadline has passed."""
        now = self._clock.now()
        has_more = True
        while has_more:
            due = await self._store.due(now, BATCH_JOBS)
            ended = [await self._end_overdue(job, now) for job in due]
            # A job that could not be ended is due again.
            has_more = len(due) == BATCH_JOBS and any(ended)
            await asyncio.sleep(0)

    async def _end_overdue(self, job: Job, now: Millis) -> bool:
        verdict = overdue(job, now)
        if verdict is None:
            return False
        ended = await self._store.settle(
            job.id, verdict.event, now=now, run=job.run, error=verdict.error
        )
        if ended is not None:
            self.withdrawn([ended])
        return ended is not None

    async def forget(self) -> None:
        """Forget all jobs whose retention has ended. Half of the time is left to other tasks."""
        clock = asyncio.get_running_loop().time
        while True:
            began = clock()
            if await self._store.forget(self._clock.now(), BATCH_JOBS) < BATCH_JOBS:
                return
            await asyncio.sleep(clock() - began)

    def withdrawn(self, jobs: Iterable[Job]) -> None:
        """Note that jobs were cancelled or purged or have expired; stop their runs."""
        for job in jobs:
            is_held = self._fleet.stop_run(job)
            if not is_held and job.worker is not None:
                self._ended_early[job.id] = job.run
                if len(self._ended_early) > ENDED_EARLY_MAX_JOBS:
                    self._ended_early.popitem(last=False)
            self._notify(job)

    async def _apply(
        self, job_id: JobId, run: int, verdict: Verdict, output: bytes | None = None
    ) -> bool:
        """Apply a verdict; return False if the job has ended already, or has another run."""
        job = await self._store.settle(
            job_id,
            verdict.event,
            now=self._clock.now(),
            run=run,
            error=verdict.error,
            counts=verdict.counts,
            output=output,
            undelivered=verdict.event is Event.RELEASE,
        )
        if job is None:
            log.debug("run.late", job=job_id, run=run, ending=verdict.event)
            # It may be the repetition of a write that was carried out.
            self._events.notify(job_id)
            self.on_delivery()
            return False
        if verdict.event is Event.RELEASE:
            self._events.notify_progress(job_id)
            self._fleet.wake(job.endpoint)
        else:
            self._notify(job)
        return True

    def _notify(self, job: Job) -> None:
        """Notify the subscribers of a job that has ended, and start its webhook."""
        self._events.notify(job.id)
        if job.submission.webhook is not None:
            self.on_delivery()


class NotRetriableError(Exception):
    """The job cannot be retried in its present status."""


class DurableJobs:
    """The operations that change durable jobs."""

    def __init__(
        self, store: JobStore, runs: DurableRuns, view: JobView, clock: Clock, ids: Ids
    ) -> None:
        self._store = store
        self._runs = runs
        self._view = view
        self._clock = clock
        self._ids = ids
        # Each element of an output is consumed once.
        self._consumers = JobTurns()

    async def submit(self, endpoint: Endpoint, owner: Owner, order: JobRequest) -> Job:
        """Put a job into the queue. It is in the store when this returns; the returned job omits
        the request body. With a key it may be an earlier job.

        Raises the store's `StoreFullError` and `OtherSubmissionError`.
        """
        now = self._clock.now()
        retention = RETENTION if order.sync_wait is None else max(SYNC_RETENTION, order.sync_wait)
        retention = retention if order.key is None else KEY_RETENTION
        submission = Submission(
            id=self._ids.durable_job(is_sync=order.sync_wait is not None),
            endpoint=endpoint.id,
            owner=owner,
            work=Input(order.input),
            light=False,
            low_priority=order.low_priority,
            queued_until=None,
            expires_at=Millis(now + order.ttl),
            execution_timeout=order.execution_timeout or endpoint.execution_timeout,
            retention=Millis(retention),
            webhook=order.webhook,
            s3_config=order.s3_config,
            key=order.key,
        )
        job = await self._store.submit(submission, now)
        self._runs.queued_again(job)
        return job.without_body()

    async def consume(
        self, endpoint: Endpoint, owner: Owner, job_id: str, seconds: float, limits: ReadLimits
    ) -> tuple[Job, Sequence[bytes]] | None:
        """Wait for elements that no client has consumed yet, and consume them.

        The cancellation of a job is reported once, with the remaining elements; then the result is
        None.
        """
        # Before the lock: waiting for it would reveal that the job exists and is being read.
        if await self._view.get(endpoint, owner, job_id) is None:
            return None
        deadline = asyncio.get_running_loop().time() + seconds
        async with self._consumers.alone(JobId(job_id)):
            while True:
                left = deadline - asyncio.get_running_loop().time()
                page = await self._view.read(endpoint, owner, job_id, None, left, limits)
                if page is None:
                    return None
                job = page.job
                position = page.cursor.position
                if job.status is Status.CANCELLED:
                    if await self._is_past_end(job):
                        return None
                    # Past the end: the cancellation has been reported.
                    position += 1
                if position == job.consumed_cursor:
                    return job, page.elements
                if await self._store.consume(job.id, job.attempt, position):
                    return job, page.elements
                # The attempt was lost in the meantime.

    async def _is_past_end(self, job: Job) -> bool:
        """Return True if the job's consumed cursor is after the end of its log."""
        last = job.consumed_cursor - 1
        if last < 0:
            return False
        owner = job.submission.owner
        page = await self._store.look(job.endpoint, owner, job.id, last, limit=1, max_bytes=0)
        return page is not None and not page.needed

    async def cancel(self, endpoint: Endpoint, owner: Owner, job_id: str) -> Job | None:
        """Cancel a job that is queued or running. One that has ended does not change."""
        job = await self._store.get(endpoint.id, owner, JobId(job_id))
        if job is None or job.is_terminal:
            if job is not None:
                # It may have been cancelled by a request whose answer was an error of the store.
                self._runs.stop(job)
            return job
        ended = await self._runs.cancel(job)
        return ended or await self._store.get(endpoint.id, owner, JobId(job_id))

    async def retry(self, endpoint: Endpoint, owner: Owner, job_id: str) -> Job | None:
        """Put a failed job into the queue again. Raises `NotRetriableError` if its status does not
        allow it.
        """
        while (job := await self._view.get(endpoint, owner, job_id)) is not None:
            again = await self._store.settle(job.id, Event.RETRY, now=self._clock.now())
            if again is not None:
                self._runs.queued_again(again)
                return again
            if not isinstance(job.submission.work, Input):
                raise NotRetriableError("An OpenAI call cannot be retried. Send the request again.")
            if advance(job.status, Event.RETRY) is None:
                rule = "Only a job that is FAILED or TIMED_OUT can be retried"
                raise NotRetriableError(f"{rule}; this one is {job.status}.")
            # Its status has changed since it was read, or it was forgotten.
        return None

    async def purge(self, endpoint: Endpoint, owner: Owner) -> int:
        """Cancel all queued jobs of an owner; return their number.

        Jobs that are submitted meanwhile remain. The jobs are cancelled in many writes, so that
        other writes are not delayed; if the caller is cancelled, the rest remains in the queue.
        """
        removed = 0
        before = self._store.next_sequence()
        while purged := await self._store.purge(
            endpoint.id, owner, self._clock.now(), CANCELLED, before=before, limit=BATCH_JOBS
        ):
            self._runs.withdrawn(purged)
            removed += len(purged)
            # A store in memory does not wait for anything.
            await asyncio.sleep(0)
        return removed

    async def limit_life(self, job: Job, ttl: Millis) -> Job | None:
        """Let the job expire `ttl` from now; return it, or None if it no longer exists."""
        return await self._store.limit_life(job.id, Millis(self._clock.now() + ttl))
