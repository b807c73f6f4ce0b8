"""Interactive jobs: calls of the OpenAI API, whose client waits on its own connection for the
answer.
"""

from proxy.jobs.ids import Ids
from proxy.jobs.lifecycle import Event
from proxy.jobs.model import Job, JobError, JobId, Millis, Owner, Request, Submission
from proxy.service.admission import Admission
from proxy.service.clock import Clock
from proxy.service.dispatch import Dispatch
from proxy.service.endings import RunEndings
from proxy.service.endpoints import Endpoint
from proxy.service.mailbox import Mailbox, Mailboxes
from proxy.store.base import JobStore

INTERACTIVE_RETENTION = Millis(60_000)
CLIENT_LEFT = JobError("client_left", "The client closed its connection.")
DRAINING = JobError("server_draining", "The server is shutting down.")


class InteractiveJobs:
    """Submits interactive jobs, and ends them when their client leaves or the proxy shuts down."""

    def __init__(
        self,
        store: JobStore,
        mailboxes: Mailboxes,
        dispatch: Dispatch,
        runs: RunEndings,
        admission: Admission,
        clock: Clock,
        ids: Ids,
    ) -> None:
        self._store = store
        self._mailboxes = mailboxes
        self._dispatch = dispatch
        self._runs = runs
        self._admission = admission
        self._clock = clock
        self._ids = ids

    async def call(
        self,
        endpoint: Endpoint,
        owner: Owner,
        request: Request,
        *,
        light: bool,
        patience: float | None,
    ) -> tuple[Job, Mailbox]:
        """Submit a job and open the mailbox in which its answer arrives.

        `patience`: the seconds that the client itself waits, if it has announced them; the job
        waits at most that long for a worker. Raises the errors of `Admission.check`. The caller
        returns the mailbox with `hang_up`.
        """
        await self._admission.check(endpoint)
        now = self._clock.now()
        wait = endpoint.queue_timeout
        if patience is not None:
            wait = Millis(min(wait, int(patience * 1000)))
        submission = Submission(
            id=self._ids.interactive_job(),
            endpoint=endpoint.id,
            owner=owner,
            work=request,
            durable=False,
            light=light,
            low_priority=False,
            queued_until=Millis(now + wait),
            expires_at=None,
            execution_timeout=endpoint.execution_timeout,
            retention=INTERACTIVE_RETENTION,
        )
        mailbox = self._mailboxes.open(submission.id, endpoint.max_answer)
        job = await self._store.submit(submission, now)
        self._dispatch.wake(endpoint.id)
        return job, mailbox

    async def hang_up(self, mailbox: Mailbox) -> None:
        """Close the mailbox of a call. If its job has not ended, it ends now; `Relay` describes
        how.
        """
        self._mailboxes.close(mailbox.job_id)
        await self._end(mailbox, CLIENT_LEFT)

    async def passed_on(self, mailbox: Mailbox) -> None:
        """Complete a job whose client has the whole answer although its run has not ended."""
        await self._runs.passed_on(mailbox.job_id, mailbox.attempt)

    async def cancel(self, job_id: JobId, why: JobError) -> None:
        """Cancel a job that is queued or running; one that has ended does not change."""
        job = await self._store.settle(job_id, Event.CANCEL, now=self._clock.now(), error=why)
        if job is not None:
            self._runs.withdraw([job], why)

    def ahead(self, job: Job) -> int:
        """Return the number of jobs before this one in the queue."""
        return self._store.ahead(job)

    async def end_waiting(self) -> None:
        """Cancel the calls that no worker has taken; their clients are asked to retry. Durable jobs
        stay queued.
        """
        for mailbox in self._mailboxes:
            if not mailbox.is_taken and mailbox.outcome is None:
                await self.cancel(mailbox.job_id, DRAINING)

    async def end_running(self) -> None:
        """Cancel the calls that still run."""
        for mailbox in self._mailboxes:
            await self._end(mailbox, DRAINING)

    async def _end(self, mailbox: Mailbox, why: JobError) -> None:
        if mailbox.outcome is not None:
            return
        if mailbox.is_whole:
            await self.passed_on(mailbox)
        else:
            await self.cancel(mailbox.job_id, why)
