"""The interfaces between the parts of the service, and to the outside: `proxy.channel` implements
`WorkerPort`, `proxy.scaler` implements `Provider`.
"""

from asyncio import Task
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from enum import Enum, auto
from typing import Protocol

from proxy.jobs.model import Head, JobId, Submission, WorkerId
from proxy.jobs.policy import RunEnd
from proxy.service.endpoints import Endpoint


class Signal(Protocol):
    """Wakes tasks when a value may have changed. A lost wake costs time, never correctness."""

    def wake(self, key: str) -> None:
        """Wake all tasks that wait for `key`."""
        ...

    async def wait(self, key: str, seconds: float | None) -> bool:
        """Wait for a wake of `key`, for at most `seconds` (None: without a limit).

        Returns True if `key` was woken, also if that happened before this call and after the
        previous wait; False after the timeout.
        """
        ...


class OfferedJob(Protocol):
    """A job that was taken for a worker: its content and its attempt."""

    @property
    def id(self) -> JobId: ...
    @property
    def submission(self) -> Submission: ...
    @property
    def attempt(self) -> int: ...


class WorkerPort(Protocol):
    """The connection to one worker. No method waits: messages are queued and are sent in this
    order.
    """

    @property
    def backlog(self) -> int:
        """Bytes of offered jobs that have not been sent yet."""
        ...

    def offer(self, job: OfferedJob) -> None:
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

    def resume(self, job_id: JobId, attempt: int, acknowledged: int, confirmed: int) -> None:
        """Allow the worker to send output of a run again.

        `acknowledged`: the bytes of its output that were consumed since the last call. `confirmed`:
        the number of frames of the run, from the first one, that the worker need not keep.
        """
        ...

    def acknowledge(self, job_id: JobId, attempt: int, confirmed: int) -> None:
        """Confirm the first frames of a run, to a worker that keeps them until then (see
        `wire.frames.Acknowledge`).
        """
        ...

    def close(self, reason: str) -> None:
        """Close the connection."""
        ...


class SinkVerdict(Enum):
    """The verdict of a sink on a piece of a run's output."""

    # The sink has the piece.
    ACCEPTED = auto()
    # Nothing was changed: the run is not the sink's current attempt, the run has ended, or the
    # sink has no use for such a piece.
    IGNORED = auto()
    # A second response head. It was ignored.
    REPEATED = auto()
    # A response body without a head. The run has to be ended.
    HEADLESS = auto()
    # The output exceeds the bytes that are kept for one job. The run has to be ended.
    TOO_LARGE = auto()


class Sink(Protocol):
    """The receiver of a run's output and of its end.

    There are two kinds: the mailbox of an interactive job, from which a client's connection reads,
    and the recording of a durable job, which goes to the store. The dispatcher chooses one when it
    hands a run out; all others give it what the worker sends, without regard to its kind.

    No method waits. Each names the attempt: a call for another attempt changes nothing. The caller
    has checked that output is JSON.
    """

    takes_values: bool
    """True if the output is a list of JSON values (`output`), False if it is a response (`head` and
    `chunk`). Output of the other form is ignored, and need not be checked.
    """

    def begin(self, attempt: int, port: WorkerPort) -> None:
        """Start a run. Output of earlier attempts is dropped: no client has received it."""
        ...

    def reattach(self, attempt: int, port: WorkerPort) -> SinkVerdict:
        """Continue a run over another connection of its worker.

        IGNORED: the output is not needed any longer, and the run has to be stopped.
        """
        ...

    def head(self, attempt: int, head: Head) -> SinkVerdict:
        """Take the head of the engine's response, of an interactive job."""
        ...

    def chunk(self, attempt: int, data: bytes, *, more: bool) -> SinkVerdict:
        """Take bytes of the response's body; `more`: the next chunk continues the same event."""
        ...

    def output(self, attempt: int, value: bytes, metrics: bytes, *, whole: bool) -> SinkVerdict:
        """Take a JSON value of a durable job's output, and its metrics, or empty bytes.

        `whole`: the value is the output itself, not an element of a list.
        """
        ...

    def end(self, attempt: int, end: RunEnd) -> "Task[bool] | None":
        """Take the end of a run and carry out its consequences for the job. The first end counts.

        Returns the task that writes them to the store, or None if there is nothing to write. The
        task's result is False if they could not be written.
        """
        ...

    def drop(self, attempt: int) -> None:
        """Discard what is kept of a run: its job has ended in another way."""
        ...


class ModelSource(Protocol):
    """Knows the models of endpoints whose workers announce none."""

    def forget_stale(self, endpoint: Endpoint) -> None:
        """Forget the models of an endpoint that earlier workers have announced, if the present ones
        announce none.
        """
        ...

    async def learn(self, endpoints: Iterable[Endpoint]) -> None:
        """Ask such workers for their models, where the models may have changed; wait for the
        answers, but not for long.
        """
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
