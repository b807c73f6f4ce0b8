"""Conversion between a job and its row in the table `jobs`."""

from sys import intern
from typing import NamedTuple

from proxy.jobs.lifecycle import Event, Status
from proxy.jobs.model import (
    EndpointId,
    Input,
    Job,
    JobError,
    JobId,
    Millis,
    Owner,
    Request,
    Submission,
    SubmissionKey,
    WorkerId,
)


class Row(NamedTuple):
    """The columns of the table `jobs`, in its order; a test checks the order."""

    number: int | None
    id: str
    endpoint: str
    owner: str
    method: str | None
    path: str | None
    content_type: str | None
    light: int
    low_priority: int
    queued_until: int | None
    expires_at: int | None
    execution_timeout: int
    retention: int
    webhook: str | None
    sequence: int
    status: str
    created_at: int
    attempt: int
    failures: int
    retries: int
    worker: str | None
    taken_at: int | None
    finished_at: int | None
    error_code: str | None
    error_message: str | None
    drained: int
    last_event: str | None
    deliver_at: int | None
    tries: int
    delivered: int = 0
    run: int = 0
    receiver: str | None = None
    key_name: str | None = None
    key_digest: bytes | None = None


def new_row(job: Job) -> Row:
    """Return the row of a job that has just been submitted."""
    submission = job.submission
    request = submission.work if isinstance(submission.work, Request) else None
    return Row(
        number=None,
        id=job.id,
        endpoint=job.endpoint,
        owner=submission.owner,
        method=None if request is None else request.method,
        path=None if request is None else request.path,
        content_type=None if request is None else request.content_type,
        light=submission.light,
        low_priority=submission.low_priority,
        queued_until=submission.queued_until,
        expires_at=submission.expires_at,
        execution_timeout=submission.execution_timeout,
        retention=submission.retention,
        webhook=submission.webhook,
        sequence=job.sequence,
        status=job.status,
        created_at=job.created_at,
        attempt=job.attempt,
        failures=job.failures,
        retries=job.retry_count,
        worker=None,
        taken_at=None,
        finished_at=None,
        error_code=None,
        error_message=None,
        drained=job.consumed_cursor,
        last_event=None,
        deliver_at=None,
        tries=0,
        receiver=None if submission.webhook is None else submission.receiver.address,
        key_name=None if submission.key is None else submission.key.name,
        key_digest=None if submission.key is None else submission.key.digest,
    )


def read_job(
    row: Row, body: bytes | None = None, s3_config: bytes | None = None, output: bytes | None = None
) -> Job:
    """Return the job of a row; its outline if the other values are not given.

    Strings that many jobs share are interned.
    """
    return Job(
        Submission(
            id=JobId(row.id),
            endpoint=EndpointId(intern(row.endpoint)),
            owner=Owner(intern(row.owner)),
            work=_work(row, body or b""),
            light=bool(row.light),
            low_priority=bool(row.low_priority),
            queued_until=_millis(row.queued_until),
            expires_at=_millis(row.expires_at),
            execution_timeout=Millis(row.execution_timeout),
            retention=Millis(row.retention),
            webhook=row.webhook,
            s3_config=s3_config,
            key=None
            if row.key_name is None
            else SubmissionKey(row.key_name, row.key_digest or b""),
        ),
        sequence=row.sequence,
        status=Status(row.status),
        created_at=Millis(row.created_at),
        attempt=row.attempt,
        run=row.run,
        failures=row.failures,
        retry_count=row.retries,
        worker=None if row.worker is None else WorkerId(intern(row.worker)),
        taken_at=_millis(row.taken_at),
        finished_at=_millis(row.finished_at),
        error=None if row.error_code is None else JobError(row.error_code, row.error_message or ""),
        output=output,
        consumed_cursor=row.drained,
        # A file of an older version has only the cursor.
        delivered=bool(row.delivered or row.drained),
        last_event=None if row.last_event is None else Event(row.last_event),
    )


def _work(row: Row, body: bytes) -> Request | Input:
    if row.method is None or row.path is None or row.content_type is None:
        return Input(body)
    return Request(intern(row.method), intern(row.path), intern(row.content_type), body)


def _millis(value: int | None) -> Millis | None:
    return None if value is None else Millis(value)
