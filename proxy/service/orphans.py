"""Orphans: durable jobs that were running when this proxy was started. Their workers have one lease
to resume them.
"""

import asyncio
from collections.abc import Iterable

import structlog

from proxy.jobs.model import Job, JobId
from proxy.service.durable import DurableRuns
from proxy.service.fleet import Worker
from proxy.service.ports import WorkerPort
from proxy.store.base import JobStore

log = structlog.get_logger()

ALL_ELEMENTS = 1_000_000


class Orphans:
    """The runs that no connected worker has resumed yet."""

    def __init__(self, store: JobStore, runs: DurableRuns) -> None:
        self._store = store
        self._runs = runs
        self._jobs: dict[JobId, Job] = {}
        # The event loop's time when their lease began.
        self._since = 0.0

    def __len__(self) -> int:
        return len(self._jobs)

    def find(self, jobs: Iterable[Job]) -> None:
        """Set the jobs that were running when the store was opened."""
        self._jobs = {job.id: job for job in jobs}

    async def adopt(
        self, worker: Worker, port: WorkerPort, job_id: JobId, attempt: int, sent: int
    ) -> bool:
        """Let a worker resume a run, if all output that it has sent is in the store.

        `sent`: the number of frames that it has sent. If some output is missing, the run ends.
        Returns False if the worker has to stop the run.
        """
        job = self._jobs.get(job_id)
        if job is None or job.attempt != attempt or job.endpoint != worker.endpoint:
            return False
        del self._jobs[job_id]
        _, written = await self._store.read(job_id, 0, ALL_ELEMENTS)
        if written != sent:
            await self._runs.orphaned(job)
            return False
        self._resume(job, worker, port, received=sent)
        return True

    def claim(self, worker: Worker, port: WorkerPort, job_id: JobId) -> Job | None:
        """Let a worker resume the run that it had; return its job, or None if it had none.

        For workers that list their jobs but not the output that they have sent.
        """
        job = self._jobs.get(job_id)
        if job is None or job.worker != worker.id:
            return None
        del self._jobs[job_id]
        self._resume(job, worker, port)
        return job

    def restart_lease(self, now: float) -> None:
        """Start the lease again in which their workers have to return."""
        self._since = now

    async def end_lease(self, now: float, lease: float) -> None:
        """End the orphans whose workers have not returned within the lease."""
        if now - self._since <= lease:
            return
        jobs = self._jobs
        self._jobs = {}
        for job in jobs.values():
            await self._runs.orphaned(job)

    def _resume(self, job: Job, worker: Worker, port: WorkerPort, *, received: int = 0) -> None:
        recording = self._runs.record(job)
        worker.hold(job, recording, since=asyncio.get_running_loop().time(), received=received)
        recording.begin(job.attempt, port)
        log.info("run.adopted", job=job.id, attempt=job.attempt, worker=worker.id)
