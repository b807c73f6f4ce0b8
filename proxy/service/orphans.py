"""Orphans: durable jobs that were running when this proxy was started. Their workers have one lease
to resume them.
"""

import asyncio
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import structlog

from proxy.jobs.model import Job, JobId
from proxy.service.durable import DurableRuns
from proxy.service.fleet import Worker
from proxy.service.ports import WorkerPort
from proxy.store.base import JobStore, StoreError

log = structlog.get_logger()

ALL_ELEMENTS = 1_000_000


class ClaimedRun(NamedTuple):
    """The job of a run that its worker has resumed, and the elements of its output log."""

    job: Job
    elements: Sequence[bytes]


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
        self, worker: Worker, port: WorkerPort, job_id: JobId, attempt: int, sent: int | None
    ) -> bool:
        """Let a worker resume a run, if no output of it is lost.

        `sent`: the number of frames that it has sent, all of which must be in the store; or None if
        it sends again what the store lacks. If some output is lost, the run ends. Returns False if
        the worker has to stop the run.
        """
        job = self._jobs.get(job_id)
        if job is None or job.attempt != attempt or job.endpoint != worker.endpoint:
            return False
        del self._jobs[job_id]
        try:
            _, written = await self._store.read(job_id, 0, ALL_ELEMENTS)
            # The list was made at the start; only the store knows if the run still goes on.
            current = await self._store.adopt(job_id, attempt)
        except StoreError:
            self._jobs[job_id] = job
            return False
        if current is None:
            return False
        if sent is not None and written != sent:
            self._runs.orphaned(job)
            return False
        self._resume(job, worker, port, written, received=written)
        return True

    async def claim(self, worker: Worker, port: WorkerPort, job_id: JobId) -> ClaimedRun | None:
        """Let a worker resume the run that it had; return it, or None if it had none.

        For workers that list their jobs but not the output that they have sent.
        """
        job = self._jobs.get(job_id)
        if job is None or job.worker != worker.id:
            return None
        del self._jobs[job_id]
        try:
            elements, written = await self._store.read(job_id, 0, ALL_ELEMENTS)
            current = await self._store.adopt(job_id, job.attempt)
        except StoreError:
            self._jobs[job_id] = job
            return None
        if current is None:
            return None
        self._resume(job, worker, port, written)
        return ClaimedRun(current, elements)

    def restart_lease(self, now: float) -> None:
        """Start the lease again in which their workers have to return."""
        self._since = now

    def end_lease(self, now: float, lease: float) -> None:
        """End the orphans whose workers have not returned within the lease."""
        if now - self._since <= lease:
            return
        jobs = self._jobs
        self._jobs = {}
        for job in jobs.values():
            self._runs.orphaned(job)

    def _resume(
        self, job: Job, worker: Worker, port: WorkerPort, written: int, *, received: int = 0
    ) -> None:
        recording = self._runs.record(job, written)
        worker.hold(job, recording, since=asyncio.get_running_loop().time(), received=received)
        recording.begin(job.attempt, port)
        log.info("run.adopted", job=job.id, attempt=job.attempt, worker=worker.id)
