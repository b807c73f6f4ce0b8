"""The operations that report on an endpoint: `health` and `requests`."""

import asyncio
from contextlib import suppress

import msgspec

from proxy.access.encryption import OtherSealError, Seal
from proxy.api.errors import ApiError
from proxy.api.http import read_whole
from proxy.api.queue import response
from proxy.api.queue.request import RequestContext, read_number
from proxy.jobs.lifecycle import Status
from proxy.service.clock import Clock, shown
from proxy.service.fleet import Fleet
from proxy.service.job_view import JobView

PAGE_ROWS = 50
PAGE_MAX_ROWS = 1_000
MAX_SEQUENCE = 2**53


class Listing:
    """The operations `health` and `requests`."""

    def __init__(self, view: JobView, fleet: Fleet, clock: Clock, seal: Seal) -> None:
        self._view = view
        self._fleet = fleet
        self._clock = clock
        self._seal = seal

    async def health(self, context: RequestContext, _: str) -> bytes:
        """Return counts of the endpoint's jobs and workers."""
        counts = await self._view.counts(context.endpoint.id)
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
        unhealthy = self._fleet.unhealthy.reasons(
            context.endpoint.id, asyncio.get_running_loop().time()
        )
        states = {
            "idle": sum(worker.is_ready and not worker.holds for worker in workers),
            "initializing": len(workers) - ready,
            "ready": ready,
            "running": running,
            "throttled": 0,
            "unhealthy": len(unhealthy),
        }
        health = {"jobs": jobs, "workers": states, "durable": self._view.is_durable}
        if unhealthy:
            health["unhealthy"] = unhealthy
        return msgspec.json.encode(health)

    async def requests(self, context: RequestContext, _: str) -> bytes:
        """List recent jobs, newest first: `?limit=`, `?before=` (`next` of a page), `?status=`."""
        limit = read_number("limit", context.query("limit"), 1, PAGE_MAX_ROWS) or PAGE_ROWS
        before = self._read_cursor(context)
        wanted = context.query("status")
        if wanted is not None and wanted not in set(Status):
            raise ApiError("invalid_body", f"`status` must be one of {', '.join(Status)}.")
        status = None if wanted is None else Status(wanted)
        jobs = await self._view.recent(
            context.endpoint, context.owner, before=before, limit=limit, status=status
        )
        now = self._clock.now()
        rows = [
            {
                "id": job.id,
                "status": job.status,
                "createdAt": shown(self._clock, job.created_at),
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
        """Return an encrypted cursor, because the sequence number counts the jobs of all owners."""
        return self._seal.close_number(sequence, _context(context))

    def _read_cursor(self, context: RequestContext) -> int | None:
        """Return the sequence number in `?before=`, or None if there is none. Raises `ApiError`.

        Plain numbers, the cursors of the previous release, are accepted for one release.
        """
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
                "`before` must be the `next` of an earlier response to this request.",
                "before",
            )
        return sequence


def _context(context: RequestContext) -> str:
    """Return the context that a cursor is bound to: one endpoint and one owner."""
    return f"requests {context.endpoint.id} {context.owner}"
