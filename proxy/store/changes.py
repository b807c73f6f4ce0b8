"""The changes of a job in the store in memory: each function returns the job after an event.

They do not check that the event applies in the job's status.
"""

from msgspec.structs import replace

from proxy.jobs.lifecycle import TRANSITIONS, Event
from proxy.jobs.model import Job, JobError, Millis, Submission, WorkerId
from proxy.jobs.policy import is_body_needed


def taken(job: Job, worker: WorkerId, now: Millis, run: int) -> Job:
    """Return the job after `take`, with a new attempt of which no output is delivered."""
    return replace(
        job,
        status=TRANSITIONS[Event.TAKE].target,
        attempt=job.attempt + 1,
        run=run,
        worker=worker,
        taken_at=now,
        consumed_cursor=0,
        delivered=False,
        last_event=Event.TAKE,
    )


def released(job: Job, *, counts: bool) -> Job:
    """Return the job after `release`; with `counts`, its `failures` is one higher."""
    return replace(
        job,
        status=TRANSITIONS[Event.RELEASE].target,
        worker=None,
        taken_at=None,
        failures=job.failures + counts,
        last_event=Event.RELEASE,
    )


def ended(job: Job, event: Event, now: Millis, error: JobError | None, output: bytes | None) -> Job:
    """Return the job after a terminal event, without its body if that is no longer needed."""
    after = replace(
        job,
        status=TRANSITIONS[event].target,
        finished_at=now,
        error=error,
        output=output,
        last_event=event,
    )
    if is_body_needed(after):
        return after
    return replace(after, submission=job.submission.without_body())


def retried(job: Job, now: Millis, sequence: int) -> Job:
    """Return the job after `retry`: as if it was submitted now, with its deadlines shifted."""
    return Job(
        _postponed(job.submission, Millis(now - job.created_at)),
        sequence,
        TRANSITIONS[Event.RETRY].target,
        created_at=now,
        attempt=job.attempt,
        run=job.run,
        retry_count=job.retry_count + 1,
        last_event=Event.RETRY,
    )


def _postponed(submission: Submission, by: Millis) -> Submission:
    queued = submission.queued_until
    expires = submission.expires_at
    return replace(
        submission,
        queued_until=None if queued is None else Millis(queued + by),
        expires_at=None if expires is None else Millis(expires + by),
    )
