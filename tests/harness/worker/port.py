"""A connection to a worker that records what the proxy sends."""

from proxy.jobs.model import JobId
from proxy.service.ports import OfferedJob


class Port:
    """`WorkerPort` that records each message with its job and attempt."""

    def __init__(self) -> None:
        self.backlog = 0
        self.messages: list[tuple[str, str, int]] = []
        self.acknowledged = 0
        self.confirmed: list[tuple[str, int, int]] = []

    def offer(self, job: OfferedJob) -> None:
        self.messages.append(("offer", job.id, job.attempt))

    def stop(self, job_id: JobId, attempt: int) -> None:
        self.messages.append(("stop", job_id, attempt))

    def pause(self, job_id: JobId, attempt: int) -> None:
        self.messages.append(("pause", job_id, attempt))

    def resume(self, job_id: JobId, attempt: int, acknowledged: int, confirmed: int) -> None:
        self.messages.append(("resume", job_id, attempt))
        self.acknowledged += acknowledged
        self.acknowledge(job_id, attempt, confirmed)

    def acknowledge(self, job_id: JobId, attempt: int, confirmed: int) -> None:
        self.confirmed.append((job_id, attempt, confirmed))

    def close(self, reason: str) -> None:
        self.messages.append(("close", reason, 0))
