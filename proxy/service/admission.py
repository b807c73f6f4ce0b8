"""Admission of new jobs: refused while the proxy drains, or if the endpoint's queue is full."""

from proxy.service.endpoints import Endpoint
from proxy.service.interactive import InteractiveJobs
from proxy.store.base import JobStore


class QueueFullError(Exception):
    """The queue of the endpoint has reached its limit."""


class DrainingError(Exception):
    """The proxy is shutting down and accepts no new jobs."""


class Admission:
    """Decides if a new job may enter a queue. Jobs of both kinds count towards the limit."""

    def __init__(self, store: JobStore, interactive: InteractiveJobs) -> None:
        self._store = store
        self._interactive = interactive
        self._is_draining = False

    @property
    def is_draining(self) -> bool:
        """True while new jobs are refused because the proxy shuts down."""
        return self._is_draining

    def close(self) -> None:
        """Refuse all new jobs from now on."""
        self._is_draining = True

    def check(self, endpoint: Endpoint) -> None:
        """Raise `DrainingError` or `QueueFullError` if a new job for this endpoint is refused.

        It is called before a body is read, so that a refusal costs little, and again before the job
        is submitted.
        """
        if self._is_draining:
            raise DrainingError("The server is shutting down. Retry in a moment.")
        queued = self._interactive.all_queued(endpoint.id) + self._store.all_queued(endpoint.id)
        if queued >= endpoint.max_queued:
            raise QueueFullError(
                f"The queue of endpoint {endpoint.id} is full ({endpoint.max_queued} jobs). "
                "Retry later."
            )
