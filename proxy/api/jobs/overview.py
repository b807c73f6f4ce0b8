"""The operations that look at many jobs: how an endpoint is, and what was asked of it lately."""

import asyncio

import msgspec

from proxy.api.errors import ApiError
from proxy.api.jobs import rendering
from proxy.api.jobs.asked import Asked
from proxy.api.jobs.envelope import read_number
from proxy.jobs.lifecycle import Status
from proxy.service.clock import Clock
from proxy.service.fleet import Fleet
from proxy.service.queue import Queue
from proxy.store.base import JobStore

PAGE, MAX_PAGE = 50, 1_000


class Overview:
    """Answers `health` and `requests`."""

    def __init__(self, store: JobStore, fleet: Fleet, queue: Queue, clock: Clock) -> None:
        self._store, self._fleet, self._queue, self._clock = store, fleet, queue, clock

    async def health(self, asked: Asked, _: str) -> bytes:
        """Jobs and workers of the endpoint."""
        counts = await self._store.counts(asked.endpoint.id)
        workers = self._fleet.of(asked.endpoint.id)
        ready = sum(worker.is_ready for worker in workers)
        running = sum(bool(worker.holds) for worker in workers)
        jobs = {
            "completed": counts.completed,
            "failed": counts.failed,
            "inProgress": counts.in_progress,
            "inQueue": counts.in_queue,
            "retried": counts.retried,
        }
        states = {
            "idle": sum(worker.is_ready and not worker.holds for worker in workers),
            "initializing": len(workers) - ready,
            "ready": ready,
            "running": running,
            "throttled": 0,
            "unhealthy": self._fleet.unhealthy(asked.endpoint.id, asyncio.get_running_loop().time()),
        }
        return msgspec.json.encode({"jobs": jobs, "workers": states, "durable": self._store.durable})

    async def requests(self, asked: Asked, _: str) -> bytes:
        """Recent jobs, newest first: `?limit=`, `?before=` (the last page's `next`), `?status=`."""
        limit = read_number("limit", asked.query("limit"), 1, MAX_PAGE) or PAGE
        before = read_number("before", asked.query("before"), 1, 2**53)
        wanted = asked.query("status")
        if wanted is not None and wanted not in set(Status):
            raise ApiError("invalid_body", f"`status` must be one of {', '.join(Status)}.")
        status = None if wanted is None else Status(wanted)
        jobs = await self._queue.recent(asked.endpoint, asked.owner, before=before, limit=limit, status=status)
        now = self._clock.now()
        rows = [
            {
                "id": job.id,
                "status": job.status,
                "createdAt": job.created_at,
                "delayTime": rendering.delay(job, now),
                "executionTime": rendering.execution(job, now),
                "retries": job.failures,
                "workerId": job.worker,
            }
            for job in jobs
        ]
        following = jobs[-1].sequence if len(jobs) == limit else None
        return msgspec.json.encode({"requests": rows, "next": following})
