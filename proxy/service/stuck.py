"""Workers that do not let go of what they were told to stop. One that was started here is ended and started again.

A handler that blocks its process, and an engine that takes no notice of a stop, cannot be stopped in any other way. No
other job pays for that: a worker that also runs something else goes on until that is over. A worker that somebody else
started is left alone; its slot stays taken.
"""

import structlog

from proxy.jobs.policy import is_stuck
from proxy.service.fleet import Fleet, Worker
from proxy.service.ports import Provider

log = structlog.get_logger()

GRACE_SECONDS = 12.0  # a healthy engine needs less than one; a worker of ours uses force against its own after ten


class StuckWorkers:
    """Finds them, and has them ended by whoever started them."""

    def __init__(self, fleet: Fleet, grace: float) -> None:
        self._fleet, self._grace = fleet, grace
        self._providers: list[Provider] = []

    def provided_by(self, provider: Provider) -> None:
        """The workers of this provider may be ended."""
        self._providers.append(provider)

    def end(self, now: float) -> None:
        """End those that have had their time. `now` is the event loop's."""
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
