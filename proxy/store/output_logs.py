"""The output logs of the store in memory."""

from collections.abc import Sequence

from proxy.jobs.model import JobId
from proxy.store.outputs import not_appended


class OutputLogs:
    """The outputs of each job's current attempt, in order. `bytes` is the size of all of them."""

    def __init__(self) -> None:
        self.bytes = 0
        self._logs: dict[JobId, list[bytes]] = {}

    def end(self, job_id: JobId) -> int:
        """Return the cursor after the last output."""
        return len(self._logs.get(job_id, ()))

    def outputs(self, job_id: JobId, cursor: int, limit: int | None = None) -> Sequence[bytes]:
        """Return up to `limit` outputs from `cursor` on."""
        end = None if limit is None else cursor + limit
        return self._logs.get(job_id, [])[cursor:end]

    def append(self, job_id: JobId, outputs: Sequence[bytes], start: int | None) -> int:
        """Append outputs and return the cursor after them, as `JobStore.append` does."""
        log = self._logs.setdefault(job_id, [])
        new = not_appended(outputs, len(log), start)
        log.extend(new)
        self.bytes += _size(new)
        return len(log)

    def rewrite(self, job_id: JobId, start: int, outputs: Sequence[bytes]) -> None:
        """Replace the outputs from `start` on."""
        log = self._logs.setdefault(job_id, [])
        self.bytes += _size(outputs) - _size(log[start:])
        log[start:] = outputs

    def drop(self, job_id: JobId) -> None:
        """Delete the log of a job, if there is one."""
        self.bytes -= _size(self._logs.pop(job_id, ()))


def _size(outputs: Sequence[bytes]) -> int:
    return sum(map(len, outputs))
