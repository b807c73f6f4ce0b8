"""Workers that do not end the runs that they were asked to stop. One that was started here is
restarted.

A handler that blocks its process, or an engine that ignores a stop, cannot be stopped in any other
way. Other jobs are not affected: a worker that also runs something else continues until that has
ended. A worker that was started elsewhere is not touched; its slot stays occupied.
"""

import structlog

from proxy.jobs.policy import is_stuck
from proxy.service.fleet import Fleet
from proxy.service.ports import Provider
from proxy.service.worker import Worker

log = structlog.get_logger()

# A healthy engine needs less than one second; our own worker cancels the request after ten.
GRACE_SECONDS = 12.0


class StuckWorkers:
    """Finds stuck workers and has their providers end them."""

    def __init__(self, fleet: Fleet, grace: float) -> None:
        self._fleet = fleet
        self._grace = grace
        self._providers: list[Provider] = []

    def provided_by(self, provider: Provider) -> None:
        """Allow ending the workers of this provider."""
        self._providers.append(provider)

    def end(self, now: float) -> None:
        """End the workers whose grace period is over. `now` is the event loop's time."""
        for worker in self._fleet:
            stopped = [hold.stopped for hold in worker.holds.values()]
            if worker.is_open and is_stuck(stopped, now, self._grace):
                self._end(worker)

    def _end(self, worker: Worker) -> None:
        if any(provider.end(worker.id) for provider in self._providers):
            worker.is_ending = True
            log.warning(
                "worker.stuck", worker=worker.id, endpoint=worker.endpoint, jobs=list(worker.holds)
            )
