"""Tells the operator why jobs wait: one log line for each change of the reason."""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import structlog

from proxy.jobs.model import EndpointId
from proxy.service.clock import Clock
from proxy.service.endpoints import Endpoints
from proxy.service.fleet import Fleet
from proxy.service.job_view import last_failure, without_slots, without_workers
from proxy.service.worker import Worker

log = structlog.get_logger()

QUEUE_LOOK_SECONDS = 1.0
# Jobs that wait for a shorter time are not worth a line.
WAIT_MIN_SECONDS = 2.0
# Between two lines about the same endpoint.
PAUSE_SECONDS = 10.0


class JobQueue(Protocol):
    """Jobs of one kind that wait for a worker."""

    def queued(self, endpoint: EndpointId, *, light: bool) -> int:
        """Return the number of queued jobs."""
        ...


@dataclass(slots=True)
class _Wait:
    """The jobs of an endpoint that have waited since `since` (the event loop's time)."""

    since: float
    # The cause in the last line, and the time of that line.
    cause: object = None
    written: float = float("-inf")


class QueueWatch:
    """Looks at the queues of all endpoints and logs the reason why their jobs wait."""

    def __init__(
        self, endpoints: Endpoints, fleet: Fleet, clock: Clock, queues: Sequence[JobQueue]
    ) -> None:
        self._endpoints = endpoints
        self._fleet = fleet
        self._clock = clock
        self._queues = queues
        self._waits: dict[EndpointId, _Wait] = {}

    async def serve(self) -> None:
        """Look once a second until cancelled."""
        while True:
            await asyncio.sleep(QUEUE_LOOK_SECONDS)
            self.look(asyncio.get_running_loop().time())

    def look(self, now: float) -> None:
        """Log the endpoints whose reason has changed; `now` is the event loop's time."""
        for endpoint in self._endpoints:
            queued = self._queued(endpoint.id)
            wait = self._waits.setdefault(endpoint.id, _Wait(now))
            if not queued:
                wait.since = now
                wait.cause = None
                continue
            workers = self._fleet.of(endpoint.id)
            cause = _cause(workers)
            if (
                now - wait.since < WAIT_MIN_SECONDS
                or cause == wait.cause
                or now - wait.written < PAUSE_SECONDS
            ):
                continue
            reason = without_workers(workers, self._clock.now()) or without_slots(
                workers, light=False
            )
            if reason:
                wait.cause = cause
                wait.written = now
                reason += last_failure(self._fleet, endpoint.id)
                log.warning("queue.waits", endpoint=endpoint.id, jobs=queued, reason=reason)

    def _queued(self, endpoint: EndpointId) -> int:
        return sum(
            queue.queued(endpoint, light=light) for queue in self._queues for light in (False, True)
        )


def _cause(workers: Sequence[Worker]) -> object:
    """Return a value that changes with the reason, but not with its seconds."""
    if any(worker.is_ready for worker in workers):
        return True
    return [None if worker.stage is None else worker.stage.text for worker in workers]
