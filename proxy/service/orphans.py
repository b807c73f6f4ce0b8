"""Orphans: durable jobs that were running when this proxy was started. Their workers have one lease
to resume them.
"""

from collections.abc import Iterable

from proxy.jobs.model import EndpointId, Job, JobId, WorkerId
from proxy.service.endings import RunEndings
from proxy.store.base import JobStore

ALL_ELEMENTS = 1_000_000


class Orphans:
    """The runs that no connected worker has resumed yet."""

    def __init__(self, store: JobStore, runs: RunEndings) -> None:
        self._store = store
        self._runs = runs
        self._jobs: dict[JobId, Job] = {}

    def __len__(self) -> int:
        return len(self._jobs)

    def find(self, jobs: Iterable[Job]) -> None:
        """Set the jobs that were running when the store was opened."""
        self._jobs = {job.id: job for job in jobs}

    async def adopt(
        self, job_id: JobId, attempt: int, endpoint: EndpointId, sent: int
    ) -> Job | None:
        """Return the job if its run may continue: all output that its worker has sent is in the
        store.

        If some of it is missing, the run ends as lost. None: the job is not an orphan, or not any
        longer.
        """
        job = self._jobs.get(job_id)
        if job is None or job.attempt != attempt or job.endpoint != endpoint:
            return None
        del self._jobs[job_id]
        _, written = await self._store.read(job_id, 0, ALL_ELEMENTS)
        if written == sent:
            return job
        await self._runs.orphaned(job)
        return None

    def claim(self, job_id: JobId, worker: WorkerId) -> Job | None:
        """Return the job if this worker ran it: for workers that list their jobs but not the output
        they have sent.
        """
        job = self._jobs.get(job_id)
        return self._jobs.pop(job_id) if job is not None and job.worker == worker else None

    async def end(self) -> None:
        """End the orphans whose workers have not returned within the lease."""
        jobs = self._jobs
        self._jobs = {}
        for job in jobs.values():
            await self._runs.orphaned(job)
