"""What the service needs from outside; `proxy.channel` and `proxy.scaler` implement it."""

from collections.abc import Callable, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import Protocol

from proxy.jobs.model import Job, JobId, WorkerId


class WorkerPort(Protocol):
    """The way to one connected worker. Nothing here waits: what is said is queued, and leaves in this order."""

    @property
    def backlog(self) -> int:
        """Bytes of jobs that were offered and have not left yet."""
        ...

    def offer(self, job: Job) -> None:
        """Give the worker a job that was taken for it. Its answers name the job's id and attempt."""
        ...

    def stop(self, job_id: JobId, attempt: int) -> None:
        """End this run; the worker still answers with its end, which frees the slot."""
        ...

    def pause(self, job_id: JobId, attempt: int) -> None:
        """Let the worker send no more output of this run until `resume`."""
        ...

    def resume(self, job_id: JobId, attempt: int) -> None:
        """Take up a paused run again."""
        ...

    def close(self, reason: str) -> None:
        """End the connection."""
        ...


@dataclass(frozen=True, slots=True)
class WorkerExit:
    """A worker process that was started here and has ended."""

    worker: WorkerId
    status: int  # as `subprocess` counts: negative is a signal
    planned: bool


class Provider(Protocol):
    """Starts and stops workers somewhere. Opened once, and everything it started has ended when it is closed."""

    def open(self, on_exit: Callable[[WorkerExit], None]) -> AbstractAsyncContextManager[None]:
        """Begin to carry out `scale`; `on_exit` hears of every worker that ends, however it ends."""
        ...

    def scale(self, desired: int) -> None:
        """Have this many workers. A worker that dies is started again, with a growing pause."""
        ...

    def end(self, worker: WorkerId) -> bool:
        """End this worker soon, whatever it does, and start another one in its place at once. False if it is not one
        of these.
        """
        ...

    def workers(self) -> Sequence[WorkerId]:
        """The workers that are alive, whether they have dialled in yet or not."""
        ...
