"""Durable jobs that full engines refuse: they wait for room, unless an engine without runs
refuses one again and again.
"""

from collections import OrderedDict

from proxy.jobs.model import EndpointId, JobId
from proxy.service.fleet import Fleet

# Refusals by engines without runs, after which a job fails. As with lost runs.
REFUSALS_MAX = 3
REFUSALS_MAX_JOBS = 1_000


class Refusals:
    """Counts how often engines without runs have refused a job."""

    def __init__(self, fleet: Fleet) -> None:
        self._fleet = fleet
        self._counts: OrderedDict[JobId, int] = OrderedDict()

    def may_wait(self, endpoint: EndpointId, job_id: JobId) -> bool:
        """Return True if a job that a full engine has refused goes back to the queue.

        It does while another worker can take it, or while runs of the endpoint can end. An engine
        without runs may refuse the job always: such a job must not keep others from running.
        """
        workers = self._fleet.of(endpoint)
        if self._fleet.could_take(endpoint) or any(worker.held for worker in workers):
            return True
        count = self._counts.pop(job_id, 0) + 1
        if count < REFUSALS_MAX:
            self._counts[job_id] = count
        if len(self._counts) > REFUSALS_MAX_JOBS:
            self._counts.popitem(last=False)
        return count < REFUSALS_MAX
