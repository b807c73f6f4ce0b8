"""How jobs come in, and how their clients take them back."""

from proxy.jobs.ids import Ids
from proxy.jobs.lifecycle import Event
from proxy.jobs.model import Job, JobError, JobId, Millis, Owner, Request, Submission
from proxy.service.clock import Clock
from proxy.service.dispatch import Dispatch
from proxy.service.endings import RunEndings
from proxy.service.endpoints import Endpoint
from proxy.service.mailbox import Mailbox, Mailboxes
from proxy.store.base import JobStore

INTERACTIVE_RETENTION = Millis(60_000)
CLIENT_LEFT = JobError("client_left", "The client closed its connection.")
DRAINING = JobError("server_draining", "This server is shutting down.")


class QueueFullError(Exception):
    """The endpoint's queue is as long as it may be."""


class DrainingError(Exception):
    """The proxy takes no more jobs."""


class InteractiveJobs:
    """Takes jobs in for clients that wait for them here."""

    def __init__(
        self,
        store: JobStore,
        output: Mailboxes,
        dispatch: Dispatch,
        runs: RunEndings,
        clock: Clock,
        ids: Ids,
    ) -> None:
        self._store, self._output, self._dispatch, self._runs, self._clock = (
            store,
            output,
            dispatch,
            runs,
            clock,
        )
        self._ids = ids
        self._draining = False

    async def call(
        self,
        endpoint: Endpoint,
        owner: Owner,
        request: Request,
        *,
        light: bool,
        patience: float | None,
    ) -> tuple[Job, Mailbox]:
        """Submit an interactive job, and open the mailbox in which its answer will come.

        `patience`: how many seconds the client itself will wait, if it has said so; the job waits no longer than that
        for a worker. Raises what `check` does. The caller gives the mailbox back with `hang_up`.
        """
        await self.check(endpoint)
        now = self._clock.now()
        wait = (
            endpoint.queue_timeout
            if patience is None
            else min(endpoint.queue_timeout, int(patience * 1000))
        )
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
        mailbox = self._output.open(submission.id, endpoint.max_answer)
        job = await self._store.submit(submission, now)
        self._dispatch.wake(endpoint.id)
        return job, mailbox

    async def hang_up(self, mailbox: Mailbox) -> None:
        """Close the call's mailbox. If its job has not ended, it ends now; see `Relay` for how."""
        self._output.close(mailbox.job_id)
        await self._end(mailbox, CLIENT_LEFT)

    async def passed_on(self, mailbox: Mailbox) -> None:
        """Complete a job whose client has the whole answer, and whose run has not ended."""
        await self._runs.passed_on(mailbox.job_id, mailbox.attempt)

    async def cancel(self, job_id: JobId, why: JobError) -> None:
        """End a job, wherever it stands; one that has ended stays as it is."""
        job = await self._store.settle(job_id, Event.CANCEL, now=self._clock.now(), error=why)
        if job is not None:
            self._runs.withdraw([job], why)

    def ahead(self, job: Job) -> int:
        """How many jobs stand in line before this one."""
        return self._store.ahead(job)

    async def check(self, endpoint: Endpoint) -> None:
        """`DrainingError` when no more jobs are taken, `QueueFullError` when the endpoint has enough that wait.

        Asked before a body is read, so that a refusal costs little, and again when the job is put in line.
        """
        if self._draining:
            raise DrainingError("This server is shutting down. Try again in a moment.")
        if (await self._store.counts(endpoint.id)).in_queue >= endpoint.max_queued:
            raise QueueFullError(
                f"Endpoint {endpoint.id} has {endpoint.max_queued} jobs waiting. Try again later."
            )

    def refuse(self) -> None:
        """Take no more jobs."""
        self._draining = True

    @property
    def is_draining(self) -> bool:
        """Whether new jobs are refused."""
        return self._draining

    async def end_waiting(self) -> None:
        """End the calls that nobody has taken yet; their clients are told to come back. Durable jobs stay in line."""
        for mailbox in self._output:
            if not mailbox.is_taken and mailbox.outcome is None:
                await self.cancel(mailbox.job_id, DRAINING)

    async def end_running(self) -> None:
        """End what is still running; its clients are told why."""
        for mailbox in self._output:
            await self._end(mailbox, DRAINING)

    async def _end(self, mailbox: Mailbox, why: JobError) -> None:
        if mailbox.outcome is not None:
            return
        if mailbox.is_whole:
            await self.passed_on(mailbox)
        else:
            await self.cancel(mailbox.job_id, why)
