"""Durable jobs that ran when this proxy was started: their workers have one lease to come back with them."""

from collections.abc import Iterable

from proxy.jobs.model import EndpointId, Job, JobId, WorkerId
from proxy.service.endings import RunEndings
from proxy.store.base import JobStore

MANY = 1_000_000


class Orphans:
    """The runs that no connected worker answers for."""

    def __init__(self, store: JobStore, runs: RunEndings) -> None:
        self._store, self._runs = store, runs
        self._jobs: dict[JobId, Job] = {}

    def __len__(self) -> int:
        return len(self._jobs)

    def find(self, jobs: Iterable[Job]) -> None:
        """These were running when the store was opened."""
        self._jobs = {job.id: job for job in jobs}

    async def adopt(
        self, job_id: JobId, attempt: int, endpoint: EndpointId, sent: int
    ) -> Job | None:
        """The job, if this run may go on: what its worker has sent of it is all in the store. Else it is an orphan no
        more either, and ends as a loss.
        """
        job = self._jobs.get(job_id)
        if job is None or job.attempt != attempt or job.endpoint != endpoint:
            return None
        del self._jobs[job_id]
        _, written = await self._store.read(job_id, 0, MANY)
        if written == sent:
            return job
        await self._runs.orphaned(job)
        return None

    def claim(self, job_id: JobId, worker: WorkerId) -> Job | None:
        """The job, if this worker had it: for one that says which jobs it has, but not how much of them it has sent."""
        job = self._jobs.get(job_id)
        return self._jobs.pop(job_id) if job is not None and job.worker == worker else None

    async def end(self) -> None:
        """Their time is up."""
        jobs, self._jobs = self._jobs, {}
        for job in jobs.values():
            await self._runs.orphaned(job)
