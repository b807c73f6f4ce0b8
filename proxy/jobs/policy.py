"""Decisions about a job, as functions of the job and the time."""

from collections.abc import Collection
from typing import NamedTuple

from proxy.jobs.lifecycle import Event, Status, advance
from proxy.jobs.model import Delivery, Job, JobError, Millis

LOW_WAITS = Millis(60_000)  # a job of low priority that has waited so long is served like any other
MAX_FAILURES = 3  # a job whose run was lost this often is what kills the workers
MAX_TRIES = 3  # of a delivery
TRY_AGAIN = Millis(10_000)  # after one that failed


class Verdict(NamedTuple):
    """What to do with a job: the event to raise, and for an end without a result, why."""

    event: Event
    error: JobError | None = None


def deadline(job: Job) -> Millis | None:
    """The first moment at which `overdue` will say something about this job, if it stays as it is."""
    moments = [job.submission.expires_at]
    match job.status:
        case Status.IN_QUEUE:
            moments.append(job.submission.queued_until)
        case Status.IN_PROGRESS if job.taken_at is not None:
            moments.append(Millis(job.taken_at + job.submission.execution_timeout))
        case _:
            return None
    return min((moment for moment in moments if moment is not None), default=None)


def overdue(job: Job, now: Millis) -> Verdict | None:
    """The end of a job whose time is up, or None."""
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
        return Verdict(Event.EXPIRE, _unserved(job, (now - job.created_at) / 1000))
    return Verdict(Event.EXPIRE, JobError("expired", "The job's time to live has ended."))


def _unserved(job: Job, seconds: float) -> JobError:
    """Why a job waited in vain. One that has run is not told to come again: see `worker_lost` in `api.errors`."""
    if not job.failures:
        return JobError("no_workers", f"No worker was free to take this within {seconds:.0f} s.")
    runs = (
        "1 run of this was lost" if job.failures == 1 else f"{job.failures} runs of this were lost"
    )
    return JobError(
        "worker_lost", f"{runs}, and no worker was free to run it again within {seconds:.0f} s."
    )


def yields(job: Job, now: Millis) -> bool:
    """Whether jobs of normal priority that came later are served before this one."""
    return job.submission.low_priority and now < job.created_at + LOW_WAITS


def is_body_needed(job: Job) -> bool:
    """Whether anybody can still ask for what the client sent: a worker, a retry, or the webhook, which is told it."""
    if not job.is_terminal:
        return True
    is_retriable = advance(job.status, Event.RETRY) is not None
    return job.submission.durable and (is_retriable or job.submission.webhook is not None)


def after_loss(job: Job, why: JobError, *, output_left: bool) -> Verdict:
    """What becomes of a job whose run was lost.

    Before any byte of output has left for the client, another worker runs it and the client sees only a delay. After
    that it fails: running it again would repeat text. A job that was lost `MAX_FAILURES` times is not tried again.
    """
    if output_left:
        return Verdict(Event.FAIL, why)
    if job.failures + 1 >= MAX_FAILURES:
        message = f"Given up after {job.failures + 1} runs were lost. The last: {why.message}"
        return Verdict(Event.FAIL, JobError("gave_up", message))
    return Verdict(Event.RELEASE)


def is_stuck(stopped: Collection[float | None], now: float, grace: float) -> bool:
    """Whether a worker does nothing but hold on to runs that it was told to stop, each for longer than the grace.

    `stopped`: for every run that it holds, when it was told to; None if it was not. In seconds.
    """
    return bool(stopped) and all(moment is not None and now - moment > grace for moment in stopped)


def after_try(delivery: Delivery, now: Millis) -> Millis | None:
    """When a delivery that has just failed is tried again; None when it is given up."""
    return Millis(now + TRY_AGAIN) if delivery.tries + 1 < MAX_TRIES else None
