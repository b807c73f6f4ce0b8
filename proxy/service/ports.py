"""The interfaces that the service needs from outside. `proxy.channel` and `proxy.scaler` implement
them.
"""

from collections.abc import Callable, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import Protocol

from proxy.jobs.model import Job, JobId, WorkerId


class WorkerPort(Protocol):
    """The connection to one worker. No method waits: messages are queued and are sent in this
    order.
    """

    @property
    def backlog(self) -> int:
        """Bytes of offered jobs that have not been sent yet."""
        ...

    def offer(self, job: Job) -> None:
        """Send the worker a job that was taken for it. Its answers name the job's id and
        attempt.
        """
        ...

    def stop(self, job_id: JobId, attempt: int) -> None:
        """Ask the worker to end a run. It still answers with its end, which frees the slot."""
        ...

    def pause(self, job_id: JobId, attempt: int) -> None:
        """Ask the worker to send no more output of a run until `resume`."""
        ...

    def resume(self, job_id: JobId, attempt: int) -> None:
        """Allow the worker to send output of a run again."""
        ...

    def close(self, reason: str) -> None:
        """Close the connection."""
        ...


@dataclass(frozen=True, slots=True)
class WorkerExit:
    """A worker process that was started here and has ended. `status` as in `subprocess`: negative
    is a signal.
    """

    worker: WorkerId
    status: int
    planned: bool


class Provider(Protocol):
    """Starts and stops workers. It is opened once; everything it started has ended when it is
    closed.
    """

    def open(self, on_exit: Callable[[WorkerExit], None]) -> AbstractAsyncContextManager[None]:
        """Start carrying out `scale`; `on_exit` is called for every worker that ends."""
        ...

    def scale(self, desired: int) -> None:
        """Run this many workers. A worker that dies is started again after a growing pause."""
        ...

    def end(self, worker: WorkerId) -> bool:
        """End this worker by force and start another one in its place. Return False if it is not
        one of these.
        """
        ...

    def workers(self) -> Sequence[WorkerId]:
        """Return the workers that are alive, connected or not."""
        ...
