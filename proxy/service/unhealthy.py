"""Reports about unhealthy workers, for `health` and for the reason why a job is queued."""

from typing import NamedTuple

from proxy.jobs.model import EndpointId, WorkerId

# Runpod workers appear under ever new ids, and the reports may never be read.
UNHEALTHY_MAX_WORKERS = 1_000


class _Report(NamedTuple):
    endpoint: EndpointId
    why: str
    until: float


class UnhealthyWorkers:
    """The latest report about each unhealthy worker. Times are those of the event loop."""

    def __init__(self) -> None:
        self._reports: dict[WorkerId, _Report] = {}

    def __len__(self) -> int:
        return len(self._reports)

    def report(self, worker_id: WorkerId, endpoint: EndpointId, until: float, why: str) -> None:
        """Remember a worker as unhealthy until that time."""
        self.forget(worker_id)
        self._reports[worker_id] = _Report(endpoint, why, until)
        if len(self._reports) > UNHEALTHY_MAX_WORKERS:
            oldest = next(iter(self._reports))
            del self._reports[oldest]

    def forget(self, worker_id: WorkerId) -> None:
        """Forget the report about a worker, which has joined again."""
        self._reports.pop(worker_id, None)

    def reasons(self, endpoint: EndpointId, now: float) -> list[str]:
        """Return the id and the reason of each unhealthy worker of an endpoint, the latest last."""
        self._reports = {key: one for key, one in self._reports.items() if one.until > now}
        return [
            f"{worker_id}: {one.why}"
            for worker_id, one in self._reports.items()
            if one.endpoint == endpoint
        ]
