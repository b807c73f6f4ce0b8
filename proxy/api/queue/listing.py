"""The operations that look at many jobs: how an endpoint is, and what was asked of it lately."""

import asyncio
from contextlib import suppress

import msgspec

from proxy.access.encryption import OtherSealError, Seal
from proxy.api.errors import ApiError
from proxy.api.numbers import read_whole
from proxy.api.queue import response
from proxy.api.queue.context import RequestContext
from proxy.api.queue.request import read_number
from proxy.jobs.lifecycle import Status
from proxy.service.clock import Clock
from proxy.service.durable import DurableJobs
from proxy.service.fleet import Fleet
from proxy.store.base import JobStore

PAGE_ROWS, PAGE_MAX_ROWS = 50, 1_000
MAX_SEQUENCE = 2**53


class Listing:
    """Answers `health` and `requests`."""

    def __init__(
        self, store: JobStore, fleet: Fleet, durable: DurableJobs, clock: Clock, seal: Seal
    ) -> None:
        self._store, self._fleet, self._durable, self._clock = store, fleet, durable, clock
        self._seal = seal

    async def health(self, context: RequestContext, _: str) -> bytes:
        """Jobs and workers of the endpoint."""
        counts = await self._store.counts(context.endpoint.id)
        workers = self._fleet.of(context.endpoint.id)
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
            "unhealthy": self._fleet.unhealthy(
                context.endpoint.id, asyncio.get_running_loop().time()
            ),
        }
        return msgspec.json.encode(
            {"jobs": jobs, "workers": states, "durable": self._store.durable}
        )

    async def requests(self, context: RequestContext, _: str) -> bytes:
        """Recent jobs, newest first: `?limit=`, `?before=` (the last page's `next`), `?status=`."""
        limit = read_number("limit", context.query("limit"), 1, PAGE_MAX_ROWS) or PAGE_ROWS
        before = self._read_cursor(context)
        wanted = context.query("status")
        if wanted is not None and wanted not in set(Status):
            raise ApiError("invalid_body", f"`status` must be one of {', '.join(Status)}.")
        status = None if wanted is None else Status(wanted)
        jobs = await self._durable.recent(
            context.endpoint, context.owner, before=before, limit=limit, status=status
        )
        now = self._clock.now()
        rows = [
            {
                "id": job.id,
                "status": job.status,
                "createdAt": job.created_at,
                "delayTime": response.delay(job, now),
                "executionTime": response.execution(job, now),
                "retries": job.failures,
                "workerId": job.worker,
            }
            for job in jobs
        ]
        following = self._cursor(context, jobs[-1].sequence) if len(jobs) == limit else None
        return msgspec.json.encode({"requests": rows, "next": following})

    def _cursor(self, context: RequestContext, sequence: int) -> str:
        """Return a cursor without the sequence, which counts the jobs of all owners."""
        return self._seal.close_number(sequence, _context(context))

    def _read_cursor(self, context: RequestContext) -> int | None:
        """Return the sequence in `?before=`. The last release gave it as it is, which is accepted for one release."""
        text = context.query("before")
        if not text:
            return None
        sequence = read_whole(text)
        if sequence is None:
            with suppress(OtherSealError):
                return self._seal.open_number(text, _context(context))
        if sequence is None or not 1 <= sequence <= MAX_SEQUENCE:
            raise ApiError(
                "invalid_body",
                "`before` must be the `next` of an earlier answer to this request.",
                "before",
            )
        return sequence


def _context(context: RequestContext) -> str:
    """Whose cursor it is: of no use to another owner, nor on another endpoint."""
    return f"requests {context.endpoint.id} {context.owner}"
