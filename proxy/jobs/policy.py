"""Decisions about jobs, as pure functions of their state and the time."""

from collections.abc import Callable, Collection, Sequence
from enum import Enum, auto
from typing import NamedTuple

from proxy.jobs.lifecycle import Event, Status, advance
from proxy.jobs.model import Delivery, Job, JobError, JobState, Millis, Request, Work

# A job of low priority that has waited this long is served like a job of normal priority.
LOW_PRIORITY_WAIT_MILLIS = Millis(60_000)

# After this many lost runs, the job itself is assumed to crash its workers.
MAX_LOST_RUNS = 3

MAX_DELIVERY_TRIES = 3
DELIVERY_RETRY_MILLIS = Millis(10_000)


CANCELLED = JobError("job_cancelled", "The job was cancelled.")
# The code of a job that no worker has taken in time.
NO_WORKERS = "no_workers"
# The code of an error without a code of its own.
ENGINE_ERROR = "engine_error"
WORKER_LOST = JobError("worker_lost", "The worker that ran this was lost.")


class Ending(Enum):
    """The way in which a run has ended."""

    # The engine's answer is complete.
    COMPLETED = auto()
    # The engine's answer is complete and reports an error.
    FAILED = auto()
    # A usable answer is missing, and another run would end in the same way.
    REFUSED = auto()
    # The engine's answer is complete and says that it takes no further request at present.
    FULL = auto()
    # The worker has returned the job, or the job did not reach it.
    RELEASED = auto()
    # The run will not be answered.
    LOST = auto()


class Correction(NamedTuple):
    """The elements that a job's output log has to have from `start` on, in place of others."""

    start: int
    elements: Sequence[bytes]


class RunEnd(NamedTuple):
    """The end of a run. `output`: the output of a durable job, if it was sent as a whole.

    `correction`: the output log is wrong. If a reader has received output of it already, the log
    cannot be corrected, and the run has failed with `error`. `retry_after`: the seconds for which
    a full engine takes no further request. `was_alone`: that engine had no other run.
    """

    ending: Ending
    error: JobError | None = None
    output: bytes | None = None
    correction: Correction | None = None
    retry_after: float = 0.0
    was_alone: bool = False


class Verdict(NamedTuple):
    """A decision about a job: the event to apply and, for an end without a result, the error.

    `counts`: a release counts as a failure of the job. `answered`: see `Outcome`.
    """

    event: Event
    error: JobError | None = None
    counts: bool = False
    answered: bool = False


# The status before an event that has only one; None: the job was new or had ended.
_BEFORE = {
    None: None,
    Event.RETRY: None,
    Event.TAKE: Status.IN_QUEUE,
    Event.RELEASE: Status.IN_PROGRESS,
}
_ANSWERED = Verdict(Event.COMPLETE, answered=True)


def deadline(job: JobState) -> Millis | None:
    """Return the earliest time at which `overdue` gives a verdict on this job, or None if never.

    The time is valid until the job's next event.
    """
    expires_at = job.submission.expires_at
    match job.status:
        case Status.IN_QUEUE:
            return queue_deadline(job.submission.queued_until, expires_at)
        case Status.IN_PROGRESS if job.taken_at is not None:
            run_until = Millis(job.taken_at + job.submission.execution_timeout)
            return run_until if expires_at is None else min(run_until, expires_at)
        case _:
            return None


def queue_deadline(queued_until: Millis | None, expires_at: Millis | None) -> Millis | None:
    """Return the deadline of a queued job with these limits (see `deadline`)."""
    if queued_until is None or expires_at is None:
        return expires_at if queued_until is None else queued_until
    return min(queued_until, expires_at)


def status_before(job: JobState) -> Status | None:
    """Return the status before the last event; None if the job was new or had ended."""
    if job.last_event in _BEFORE:
        return _BEFORE[job.last_event]
    return Status.IN_QUEUE if job.taken_at is None else Status.IN_PROGRESS


def overdue(job: JobState, now: Millis) -> Verdict | None:
    """Return the verdict on a job whose deadline has passed, or None if it has not."""
    moment = deadline(job)
    if moment is None or moment > now:
        return None
    if job.status is Status.IN_PROGRESS and moment != job.submission.expires_at:
        seconds = job.submission.execution_timeout / 1000
        return Verdict(
            Event.EXPIRE,
            JobError("execution_timeout", f"The job ran for longer than {seconds:g} seconds."),
        )
    if job.status is Status.IN_QUEUE and moment != job.submission.expires_at:
        return Verdict(Event.EXPIRE, _queue_timeout_error(job, (now - job.created_at) / 1000))
    return Verdict(
        Event.EXPIRE, JobError("expired", "The job did not finish within its time to live.")
    )


def _queue_timeout_error(job: JobState, seconds: float) -> JobError:
    """Return the error of a job that no worker has taken in time.

    A job that has run gets `worker_lost`, which does not invite a retry (see `api.errors`).
    """
    if not job.failures:
        return JobError(NO_WORKERS, f"No worker was free to take this job within {seconds:.0f} s.")
    lost = "1 run of this job was" if job.failures == 1 else f"{job.failures} runs of this job were"
    return JobError(
        "worker_lost",
        f"{lost} lost, and no worker was free to run it again within {seconds:.0f} s.",
    )


def yields(job: JobState, now: Millis) -> bool:
    """Return True if later jobs of normal priority are served before this one."""
    return job.submission.low_priority and now < job.created_at + LOW_PRIORITY_WAIT_MILLIS


def is_body_needed(job: Job) -> bool:
    """Return True if the request body can still be needed.

    Its users are a worker, a retry, and the webhook, whose notification includes it.
    """
    if not job.is_terminal:
        return True
    is_retriable = advance(job.status, Event.RETRY) is not None
    return is_retriable or job.submission.webhook is not None


def after_run(
    end: RunEnd,
    failures: int = 0,
    *,
    output_left: bool = False,
    is_whole: bool = False,
    may_wait: bool = True,
) -> Verdict:
    """Return the verdict on a job whose run has ended.

    `failures`: the runs that were lost before. `output_left`: output of this run has been sent to
    the client; it matters for a run that was full, released or lost. `is_whole`: all of it was
    sent; it matters for one that was released or lost. `may_wait`: a job that a full engine has
    refused waits for another worker, or for this one. Otherwise its client gets the engine's
    refusal.

    A released job returns to the queue. So does a lost one if no byte of its output has been sent:
    the client sees only a delay. If output has been sent, the job fails, because a second run would
    repeat it. A job that has lost `MAX_LOST_RUNS` runs fails too.
    """
    match end.ending:
        case Ending.COMPLETED:
            return _ANSWERED
        case Ending.FAILED:
            return Verdict(Event.FAIL, end.error, answered=True)
        case Ending.REFUSED:
            return Verdict(Event.FAIL, end.error)
        case Ending.FULL if may_wait and not output_left:
            return Verdict(Event.RELEASE)
        case Ending.FULL:
            return Verdict(Event.FAIL, end.error, answered=True)
        case Ending.RELEASED if not output_left:
            return Verdict(Event.RELEASE)
    if is_whole:
        # There is nothing left to lose.
        return _ANSWERED
    why = end.error or WORKER_LOST
    if output_left:
        return Verdict(Event.FAIL, why)
    if failures + 1 >= MAX_LOST_RUNS:
        message = f"Given up after {failures + 1} runs were lost. Cause of the last: {why.message}"
        return Verdict(Event.FAIL, JobError("gave_up", message))
    return Verdict(Event.RELEASE, counts=True)


def is_form(work: Work) -> bool:
    """Return True if the body of a request is multipart/form-data."""
    return isinstance(work, Request) and work.content_type.lower().startswith("multipart/")


def share_credit(
    credit: int, interactive: Sequence[int], queued_before: Callable[[int | None], int]
) -> tuple[int, int]:
    """Return how many of the next `credit` jobs of an endpoint are durable and interactive ones.

    Both queues together are in one order: by sequence, and durable jobs of low priority last.
    `interactive`: the sequences of the first interactive jobs. `queued_before`: returns the number
    of durable jobs before a sequence or, for None, of all.
    """
    durable = queued_before(None)
    if not durable:
        return 0, min(credit, len(interactive))
    first = 0
    for sequence in interactive[:credit]:
        if queued_before(sequence) + first >= credit:
            break
        first += 1
    return min(credit - first, durable), first


def is_stuck(stopped: Collection[float | None], now: float, grace: float) -> bool:
    """Return True if a worker only holds runs that it should have stopped longer than `grace` ago.

    `stopped` has the time of the stop request of each run that the worker holds, or None if the
    run was not stopped. All times are in seconds.
    """
    return bool(stopped) and all(moment is not None and now - moment > grace for moment in stopped)


def after_try(delivery: Delivery, now: Millis) -> Millis | None:
    """Return the time of the next try after a failed delivery, or None to end the delivery."""
    return Millis(now + DELIVERY_RETRY_MILLIS) if delivery.tries + 1 < MAX_DELIVERY_TRIES else None
