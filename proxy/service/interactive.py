"""Interactive jobs: calls of the OpenAI API, whose client waits on its own connection for the
answer.

Each is a record in the memory of this proxy, with the mailbox of its client. No method waits, so
none depends on the disk. The request body is dropped when the job ends; an outline of the job can
be read for `RETENTION_MILLIS` after that.
"""

import asyncio
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from typing import TypeAlias, TypeVar

from proxy.jobs.lifecycle import Event, Status
from proxy.jobs.model import (
    Counts,
    EndpointId,
    Ids,
    InteractiveJob,
    Job,
    JobError,
    JobId,
    JobState,
    Millis,
    Outcome,
    Owner,
    Request,
    Submission,
    WorkerId,
)
from proxy.jobs.policy import (
    CANCELLED,
    NO_WORKERS,
    Ending,
    RunEnd,
    after_run,
    deadline,
    is_form,
    overdue,
)
from proxy.service.clock import Clock
from proxy.service.ended_jobs import RETENTION_MILLIS, EndedJobs
from proxy.service.endpoints import Endpoint
from proxy.service.events import JobEvents
from proxy.service.fleet import Fleet, log_loss
from proxy.service.mailbox import Mailbox, OnRunEnd
from proxy.store.base import JobStore
from proxy.store.job_index import QueueIndex

# The reason why a job is queued that no other job and no limit holds back.
NEXT_IN_LINE = "Next in line."
CLIENT_LEFT = JobError("client_left", "The client closed its connection.")
DRAINING = JobError("server_draining", "The server is shutting down. Retry in a moment.")

M = TypeVar("M", bound=Mailbox)
MakeMailbox: TypeAlias = Callable[[InteractiveJob, int, OnRunEnd], M]
"""Makes a mailbox; the arguments are those of `Mailbox`."""


class InteractiveJobs:
    """The interactive jobs of this proxy: their queue, their ends, and the clients that wait.

    Its length is the number of clients that wait; iteration yields their mailboxes.
    """

    def __init__(
        self, store: JobStore, fleet: Fleet, events: JobEvents, clock: Clock, ids: Ids
    ) -> None:
        self._store = store
        self._fleet = fleet
        self._events = events
        self._clock = clock
        self._ids = ids
        self._mailboxes: dict[JobId, Mailbox] = {}
        self._index = QueueIndex()
        self._ended = EndedJobs()
        self._empty = asyncio.Event()
        self._empty.set()
        self.reason_of: Callable[[JobState], str] = _no_reason
        """Returns the reason why a job is queued; see `JobView.reason`."""

    def __len__(self) -> int:
        return len(self._mailboxes)

    def __iter__(self) -> Iterator[Mailbox]:
        return iter(tuple(self._mailboxes.values()))

    # Called by the OpenAI API

    def call(
        self,
        endpoint: Endpoint,
        owner: Owner,
        request: Request,
        *,
        light: bool,
        queue_timeout: float | None,
    ) -> Mailbox:
        """Put a job into the queue; return the mailbox in which its answer arrives.

        `queue_timeout`: the seconds that the client itself waits, if it has announced them; the job
        waits at most that long for a worker. The caller returns the mailbox with `hang_up`.
        """
        mailbox = self._new(
            endpoint, owner, request, Mailbox, light=light, queue_timeout=queue_timeout
        )
        self._note(mailbox)
        self._fleet.wake(endpoint.id)
        return mailbox

    def begin(
        self,
        endpoint: Endpoint,
        owner: Owner,
        request: Request,
        worker: WorkerId,
        *,
        light: bool,
        queue_timeout: float | None,
        make: MakeMailbox[M],
    ) -> M:
        """Add a job that this worker gets at once, because no other job waits; like `call`."""
        mailbox = self._new(
            endpoint, owner, request, make, light=light, queue_timeout=queue_timeout
        )
        mailbox.job.take(worker, mailbox.job.created_at)
        self._index.note_taken(mailbox.job)
        mailbox.deadline = deadline(mailbox.job)
        return mailbox

    def _new(
        self,
        endpoint: Endpoint,
        owner: Owner,
        request: Request,
        make: MakeMailbox[M],
        *,
        light: bool,
        queue_timeout: float | None,
    ) -> M:
        now = self._clock.now()
        wait = endpoint.queue_timeout
        if queue_timeout is not None:
            wait = Millis(min(wait, int(queue_timeout * 1000)))
        submission = Submission(
            id=self._ids.interactive_job(),
            endpoint=endpoint.id,
            owner=owner,
            work=request,
            light=light,
            low_priority=False,
            queued_until=Millis(now + wait),
            expires_at=None,
            execution_timeout=endpoint.execution_timeout,
            retention=RETENTION_MILLIS,
        )
        job = InteractiveJob(submission, self._store.next_sequence(), now)
        mailbox = make(job, endpoint.max_answer, self._end_run)
        self._mailboxes[job.id] = mailbox
        self._empty.clear()
        return mailbox

    def hang_up(self, mailbox: Mailbox) -> None:
        """Close the mailbox of a call. If its job has not ended, it ends now; `Relay` describes
        how. Harmless if the mailbox has been closed before.

        A mailbox with `on_leave` is given to that instead, once: the call can be repeated.
        """
        if (leave := mailbox.on_leave) is not None:
            mailbox.on_leave = None
            leave()
            return
        self._mailboxes.pop(mailbox.job.id, None)
        if not self._mailboxes:
            self._empty.set()
        if mailbox.outcome is None:
            self._withdraw(mailbox, CLIENT_LEFT)

    def passed_on(self, mailbox: Mailbox) -> None:
        """Complete a job whose client has the whole answer although its run has not ended; stop the
        run.
        """
        if self._end(mailbox, Event.COMPLETE, Outcome(answered=True)):
            self._fleet.stop_run(mailbox.job)

    def ahead(self, job: JobState) -> int:
        """Return the number of jobs of both kinds that will be handed out before this one."""
        return self._index.ahead(job) + self._store.ahead(job)

    # Called by the dispatcher

    def first(self, endpoint: EndpointId, limit: int, *, light: bool) -> list[int]:
        """Return the sequences of the first queued jobs."""
        return [key.sequence for key in self._index.first(endpoint, limit, light=light)]

    def all_queued(self, endpoint: EndpointId) -> int:
        """Return the number of queued jobs that need credit of either kind."""
        return self._index.all_queued(endpoint)

    def queued(self, endpoint: EndpointId, *, light: bool) -> int:
        """Return the number of queued jobs."""
        return self._index.queued(endpoint, light=light)

    def take(
        self, endpoint: EndpointId, worker: WorkerId, limit: int, *, light: bool
    ) -> list[Mailbox]:
        """Hand out up to `limit` jobs to a worker, in the order of their sequences."""
        now = self._clock.now()
        taken = [
            self._mailboxes[key.job_id]
            for key in self._index.pop(endpoint, limit, now, light=light)
        ]
        for mailbox in taken:
            mailbox.job.take(worker, now)
            self._note(mailbox)
        return taken

    # Called by the queue API. A job of another owner is treated like an unknown one.

    def get(self, endpoint: EndpointId, owner: Owner, job_id: JobId) -> Job | None:
        """Return an outline of a job, or None if this owner has no such job on this endpoint."""
        mailbox = self._mailboxes.get(job_id)
        job = self._ended.jobs.get(job_id) if mailbox is None else mailbox.job
        if job is None or job.endpoint != endpoint or job.submission.owner != owner:
            return None
        return job.outline()

    def recent(
        self,
        endpoint: EndpointId,
        owner: Owner,
        *,
        before: int | None,
        limit: int,
        status: Status | None,
    ) -> Sequence[Job]:
        """Return outlines of an owner's jobs, newest first, like `JobStore.recent`."""
        running = (each.job for each in self._mailboxes.values() if not each.job.is_terminal)
        found = [
            job
            for job in (*running, *self._ended)
            if job.endpoint == endpoint
            and job.submission.owner == owner
            and (before is None or job.sequence < before)
            and (status is None or job.status is status)
        ]
        found.sort(key=lambda job: -job.sequence)
        return [job.outline() for job in found[:limit]]

    def counts(self, endpoint: EndpointId) -> Counts:
        """Return the number of jobs by status; of those that have ended, since the start."""
        return self._index.counts(endpoint)

    def cancel(self, endpoint: EndpointId, owner: Owner, job_id: JobId) -> Job | None:
        """Cancel a job that is queued or running; one that has ended does not change."""
        if self.get(endpoint, owner, job_id) is None:
            return None
        if (mailbox := self._mailboxes.get(job_id)) is not None:
            self._cancel(mailbox, CANCELLED)
        return self.get(endpoint, owner, job_id)

    def purge(self, endpoint: EndpointId, owner: Owner) -> int:
        """Cancel all queued jobs of an owner; return their number."""
        queued = [
            mailbox
            for mailbox in self
            if mailbox.job.endpoint == endpoint
            and mailbox.job.submission.owner == owner
            and mailbox.job.status is Status.IN_QUEUE
        ]
        for mailbox in queued:
            self._cancel(mailbox, CANCELLED)
        return len(queued)

    # Called by the sweeper

    def tick(self, now: float) -> None:
        """Check the alarms of all mailboxes; `now` is the event loop's time. A few calls a second
        cost less than a timer for each write.
        """
        for mailbox in self._mailboxes.values():
            mailbox.tick(now)

    def end_overdue(self) -> None:
        """End the jobs whose deadline has passed, and forget those whose retention has ended."""
        now = self._clock.now()
        self._ended.forget(now)
        overdue_ones = [
            mailbox
            for mailbox in self._mailboxes.values()
            if mailbox.deadline is not None and mailbox.deadline <= now
        ]
        for mailbox in overdue_ones:
            if mailbox.is_whole:
                # Only the end of its run is late.
                self.passed_on(mailbox)
            elif (verdict := overdue(mailbox.job, now)) is not None:
                error = self._with_reason(mailbox.job, verdict.error)
                if self._end(mailbox, verdict.event, Outcome(answered=False, error=error)):
                    self._fleet.stop_run(mailbox.job)

    # Called when the proxy shuts down

    async def wait_empty(self, seconds: float) -> bool:
        """Wait up to `seconds` for all calls to finish; return True if they did."""
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._empty.wait()
        return not self._mailboxes

    def end_waiting(self) -> None:
        """Cancel the calls that no worker has taken; their clients are asked to retry."""
        for mailbox in self:
            if not mailbox.is_taken:
                self._cancel(mailbox, DRAINING)

    def end_running(self) -> None:
        """End the calls that still run."""
        for mailbox in self:
            self._withdraw(mailbox, DRAINING)

    # The ends of jobs

    def _with_reason(self, job: InteractiveJob, error: JobError | None) -> JobError | None:
        """Add the reason why a job is queued to the error of one that no worker has taken."""
        if error is None or error.code != NO_WORKERS:
            return error
        why = self.reason_of(job)
        return error if why == NEXT_IN_LINE else JobError(error.code, f"{error.message} {why}")

    def _end_run(self, mailbox: Mailbox, end: RunEnd) -> None:
        """Carry out the end of a run: its job ends, or returns to the queue."""
        job = mailbox.job
        verdict = after_run(
            end,
            job.failures,
            output_left=mailbox.left,
            is_whole=mailbox.is_whole,
            may_wait=end.ending is Ending.FULL
            and self._fleet.could_take(job.endpoint, is_form=is_form(job.submission.work)),
        )
        log_loss(job, end, verdict)
        if verdict.event is not Event.RELEASE:
            self._end(mailbox, verdict.event, Outcome(verdict.answered, verdict.error))
        elif job.release(counts=verdict.counts):
            self._note(mailbox)
            mailbox.requeue()
            self._events.notify_progress(job.id)
            self._fleet.wake(job.endpoint)

    def _withdraw(self, mailbox: Mailbox, why: JobError) -> None:
        if mailbox.is_whole:
            self.passed_on(mailbox)
        else:
            self._cancel(mailbox, why)

    def _cancel(self, mailbox: Mailbox, why: JobError) -> None:
        if self._end(mailbox, Event.CANCEL, Outcome(answered=False, error=why)):
            self._fleet.stop_run(mailbox.job)

    def _end(self, mailbox: Mailbox, event: Event, outcome: Outcome) -> bool:
        """Apply an event that ends a job; return False if the job has ended already."""
        job = mailbox.job
        if not job.end(event, outcome.error, self._clock.now()):
            return False
        self._note(mailbox)
        self._ended.add(job)
        self._events.notify(job.id)
        mailbox.close(outcome)
        return True

    def _note(self, mailbox: Mailbox) -> None:
        """Record a change of a job's status."""
        self._index.note(mailbox.job)
        mailbox.deadline = deadline(mailbox.job)


def _no_reason(_: JobState) -> str:
    return NEXT_IN_LINE
