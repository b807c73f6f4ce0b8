"""Durable jobs that full engines refuse: they wait in the queue, unless engines without other
runs refuse one repeatedly.
"""

from collections import OrderedDict

from proxy.jobs.model import EndpointId, JobId
from proxy.service.fleet import Fleet

# For each connected worker: refusals by engines without other runs, after which a job fails.
REFUSALS_MAX = 3
REFUSALS_MAX_JOBS = 1_000


class Refusals:
    """Counts how often engines without other runs have refused a job."""

    def __init__(self, fleet: Fleet) -> None:
        self._fleet = fleet
        self._counts: OrderedDict[JobId, int] = OrderedDict()

    def may_wait(self, endpoint: EndpointId, job_id: JobId) -> bool:
        """Return True if a job that an engine without other runs has refused goes back to the
        queue.

        Such engines may refuse the job always, and it must not keep others from running.
        """
        limit = REFUSALS_MAX * max(1, len(self._fleet.of(endpoint)))
        count = self._counts.pop(job_id, 0) + 1
        if count < limit:
            self._counts[job_id] = count
        if len(self._counts) > REFUSALS_MAX_JOBS:
            self._counts.popitem(last=False)
        return count < limit
