"""Queries on the database file, and the reader that runs them in a thread.

Each query reads one committed state through its connection. The size of an output is read before
its value, and values only up to a limit.
"""

import asyncio
import json
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from functools import partial
from sqlite3 import Connection
from sys import intern
from typing import Any, NamedTuple, TypeVar

from msgspec.structs import replace

from proxy.jobs.lifecycle import TRANSITIONS, Event, Status
from proxy.jobs.model import EndpointId, Job, JobId, Millis, Owner, Submission
from proxy.jobs.policy import queue_deadline
from proxy.store.errors import OtherSubmissionError
from proxy.store.outputs import LogPage, StoredResult, first_outputs
from proxy.store.queue_key import PlainKey
from proxy.store.sqlite.rows import Row, read_job
from proxy.store.sqlite.writer import FILE_ERRORS

T = TypeVar("T")

NO_LIMIT = -1
# Queries that are handed over together: the first one waits for the result of the last one.
BATCH_MAX_QUERIES = 32

# Free pages that stay in the file for new jobs: 16 MB, or a quarter of a larger file.
FREE_PAGES_MIN = 4096
FREE_PAGES_DIVISOR = 4


def get(db: Connection, endpoint: EndpointId, owner: Owner, job_id: JobId) -> Job | None:
    """Return an outline of a job of this owner."""
    sql = "SELECT * FROM jobs WHERE id = ? AND endpoint = ? AND owner = ?"
    return _first(_outlines(db.execute(sql, (job_id, endpoint, owner))))


def find(db: Connection, job_id: JobId) -> Job | None:
    """Return a job, with its body and output, by its id alone."""
    sql = """SELECT jobs.*, body, s3_config, output FROM jobs
             LEFT JOIN works ON works.job = number LEFT JOIN results ON results.job = number
             WHERE id = ?"""
    return _first(_with_values(db.execute(sql, (job_id,))))


def keyed(db: Connection, submission: Submission) -> Job | None:
    """Return an outline of the job that was submitted with the same key.

    Raises `OtherSubmissionError` if its request body was another one.
    """
    if submission.key is None:
        return None
    sql = "SELECT * FROM jobs WHERE endpoint = ? AND owner = ? AND key_name = ?"
    parameters = (submission.endpoint, submission.owner, submission.key.name)
    job = _first(_outlines(db.execute(sql, parameters)))
    if job is not None and job.submission.key != submission.key:
        raise OtherSubmissionError
    return job


def has_secrets(db: Connection) -> bool:
    """Return True if a job or a pending delivery needs encrypted values. Reads the whole table."""
    # Older versions did not encrypt webhooks, and wrote no separator.
    sql = """SELECT EXISTS (SELECT 1 FROM works WHERE s3_config IS NOT NULL)
                 OR EXISTS (SELECT 1 FROM jobs WHERE instr(webhook, ' ')
                                AND (finished_at IS NULL OR deliver_at IS NOT NULL))"""
    return bool(_query_number(db, sql))


def recent(
    db: Connection,
    endpoint: EndpointId,
    owner: Owner,
    before: int | None,
    limit: int,
    status: Status | None,
) -> list[Job]:
    """Return outlines of an owner's jobs, newest first."""
    last = 2**63 - 1 if before is None else before
    if status is None:
        sql = """SELECT * FROM jobs WHERE endpoint = ? AND owner = ? AND sequence < ?
                 ORDER BY sequence DESC LIMIT ?"""
        return _outlines(db.execute(sql, (endpoint, owner, last, limit)))
    sql = """SELECT * FROM jobs WHERE endpoint = ? AND owner = ? AND status = ? AND sequence < ?
             ORDER BY sequence DESC LIMIT ?"""
    return _outlines(db.execute(sql, (endpoint, owner, status, last, limit)))


def outlines(db: Connection, job_ids: Iterable[JobId]) -> list[Job]:
    """Return outlines of these jobs, in any order."""
    sql = "SELECT * FROM jobs WHERE id IN (SELECT value FROM json_each(?))"
    return _outlines(db.execute(sql, (json.dumps(list(job_ids)),)))


def running(db: Connection) -> list[Job]:
    """Return outlines of the jobs that are running on a worker."""
    status = TRANSITIONS[Event.TAKE].target
    return _outlines(
        db.execute("SELECT * FROM jobs WHERE finished_at IS NULL AND status = ?", (status,))
    )


def outputs(db: Connection, job_id: JobId, cursor: int, limit: int = NO_LIMIT) -> list[bytes]:
    """Return up to `limit` outputs of a job's log from `cursor` on."""
    sql = """SELECT output FROM outputs
             WHERE job = (SELECT number FROM jobs WHERE id = ?) AND cursor >= ?
             ORDER BY cursor LIMIT ?"""
    return [output for (output,) in db.execute(sql, (job_id, cursor, limit))]


def look(
    db: Connection,
    endpoint: EndpointId,
    owner: Owner,
    job_id: JobId,
    cursor: int | None,
    limit: int,
    max_bytes: int,
) -> LogPage | None:
    """Return a page of outputs (see `JobStore.look`)."""
    # SQLite reads the size of a large value without the value.
    sql = """SELECT CASE WHEN length(output) <= ? THEN output END, length(output) FROM outputs
             WHERE job = (SELECT number FROM jobs WHERE id = ?) AND cursor >= ?
             ORDER BY cursor LIMIT ?"""
    with _snapshot(db):
        job = get(db, endpoint, owner, job_id)
        if job is None:
            return None
        start = job.consumed_cursor if cursor is None else cursor
        with closing(db.execute(sql, (max_bytes, job_id, start, limit))) as rows:
            part, needed = first_outputs(rows, max_bytes)
        return LogPage(job, part, start + len(part), needed)


def result(
    db: Connection,
    endpoint: EndpointId,
    owner: Owner,
    job_id: JobId,
    max_bytes: int,
    cursor: int | None,
) -> StoredResult | None:
    """Return a job with its output (see `JobStore.result`)."""
    with _snapshot(db):
        job = get(db, endpoint, owner, job_id)
        if job is None or not job.is_terminal:
            return None if job is None else StoredResult(job, (), 0)
        found = None if cursor is not None else _with_output(db, job, max_bytes)
        return found or _with_log(db, job, cursor or 0, max_bytes)


def has_forgettable(db: Connection, now: Millis) -> bool:
    """Return True if `forget` has anything to delete or to give back."""
    sql = """SELECT EXISTS (SELECT 1 FROM jobs
             WHERE finished_at IS NOT NULL AND deliver_at IS NULL
                   AND finished_at + retention <= ?)"""
    return bool(_query_number(db, sql, (now,))) or has_excess_free_pages(db)


def has_excess_free_pages(db: Connection) -> bool:
    """Return True if the file has more free pages than new jobs will soon use."""
    free = _query_number(db, "PRAGMA freelist_count")
    pages = _query_number(db, "PRAGMA page_count")
    return free > max(FREE_PAGES_MIN, pages // FREE_PAGES_DIVISOR)


def queued(db: Connection) -> Iterator[tuple[EndpointId, Millis | None, PlainKey]]:
    """Yield endpoint, deadline and key of all queued jobs, by sequence."""
    sql = """SELECT endpoint, queued_until, expires_at,
                    sequence, id, owner, created_at, light, low_priority
             FROM jobs WHERE finished_at IS NULL AND status = ? ORDER BY sequence"""
    rows = db.execute(sql, (TRANSITIONS[Event.RELEASE].target,))
    for endpoint, queued_until, expires_at, sequence, job_id, owner, created_at, light, low in rows:
        # An owner's jobs share one string.
        key = (sequence, job_id, Owner(intern(owner)), created_at, light, low)
        yield endpoint, queue_deadline(queued_until, expires_at), key


def ended(db: Connection) -> dict[tuple[EndpointId, str], int]:
    """Return the counts of ended jobs, by endpoint and status (or `retry`)."""
    return {
        (EndpointId(endpoint), name): number
        for endpoint, name, number in db.execute("SELECT * FROM ended")
    }


def has_deliveries_after(db: Connection, latest: Millis) -> bool:
    """Return True if a delivery is due after `latest`."""
    sql = "SELECT EXISTS (SELECT 1 FROM jobs INDEXED BY jobs_to_deliver WHERE deliver_at > ?)"
    return bool(_query_number(db, sql, (latest,)))


def newest(db: Connection, until: Millis) -> Millis | None:
    """Return the latest time of any job up to `until`, or None."""
    sql = """SELECT max(created_at) FILTER (WHERE created_at <= :until),
                    max(taken_at) FILTER (WHERE taken_at <= :until),
                    max(finished_at) FILTER (WHERE finished_at <= :until) FROM jobs"""
    [moments] = db.execute(sql, {"until": until}).fetchall()
    return max((Millis(moment) for moment in moments if moment is not None), default=None)


def last_sequence(db: Connection) -> int:
    """Return the greatest sequence in use, or 0."""
    return _query_number(db, "SELECT coalesce(max(sequence), 0) FROM jobs")


def _query_number(db: Connection, sql: str, parameters: Sequence[Any] = ()) -> int:
    [[number]] = db.execute(sql, parameters).fetchall()
    return int(number)


def _outlines(rows: Iterable[Any]) -> list[Job]:
    return [read_job(Row(*row)) for row in rows]


def _with_values(rows: Iterable[Any]) -> list[Job]:
    return [read_job(Row(*row[:-3]), *row[-3:]) for row in rows]


def _first(jobs: list[Job]) -> Job | None:
    return jobs[0] if jobs else None


def _with_output(db: Connection, job: Job, max_bytes: int) -> StoredResult | None:
    sql = """SELECT CASE WHEN length(output) <= ? THEN output END, length(output) FROM results
             WHERE job = (SELECT number FROM jobs WHERE id = ?)"""
    for output, size in db.execute(sql, (max_bytes, job.id)).fetchall():
        return StoredResult(replace(job, output=output), (), size)
    return None


def _with_log(db: Connection, job: Job, cursor: int, max_bytes: int) -> StoredResult:
    sql = """SELECT coalesce(sum(length(output)), 0) FROM outputs
             WHERE job = (SELECT number FROM jobs WHERE id = ?) AND cursor >= ?"""
    [[size]] = db.execute(sql, (job.id, cursor)).fetchall()
    return StoredResult(job, outputs(db, job.id, cursor) if size <= max_bytes else (), size)


@contextmanager
def _snapshot(db: Connection) -> Iterator[None]:
    """Read one committed state in all queries of the context."""
    db.execute("BEGIN")
    try:
        yield
    finally:
        db.execute("COMMIT")


class Query(NamedTuple):
    """A query that waits for the thread, and the future of its result."""

    run: Callable[[Connection], Any]
    future: asyncio.Future[Any]


class Result(NamedTuple):
    """The result of a query, or its error."""

    value: Any
    error: BaseException | None = None


class BatchReader:
    """Runs queries on a connection in a thread, in their order.

    To hand work to a thread and back costs more than a small query. So all queries of one turn of
    the event loop are handed over together, and so are those that arrive while the thread is busy.
    `pool` has one thread, and is shut down after `close`.
    """

    def __init__(self, db: Connection, pool: ThreadPoolExecutor) -> None:
        self._db = db
        self._pool = pool
        self._loop = asyncio.get_running_loop()
        self._waiting: deque[Query] = deque()
        # Set while no query waits or runs.
        self._idle = asyncio.Event()
        self._idle.set()

    async def read(self, query: Callable[[Connection], T]) -> T:
        """Return the result of a query, or raise its error."""
        future: asyncio.Future[T] = self._loop.create_future()
        self._waiting.append(Query(query, future))
        if self._idle.is_set():
            self._idle.clear()
            self._loop.call_soon(self._start)
        return await future

    async def close(self) -> None:
        """Wait until all queries have ended."""
        await self._idle.wait()

    def _start(self) -> None:
        size = min(len(self._waiting), BATCH_MAX_QUERIES)
        batch = [self._waiting.popleft() for _ in range(size)]
        running = self._loop.run_in_executor(self._pool, _run, self._db, batch)
        running.add_done_callback(partial(self._end, batch))

    def _end(self, batch: Sequence[Query], done: asyncio.Future[Sequence[Result]]) -> None:
        bug = done.exception()
        results = [Result(None, bug)] * len(batch) if bug is not None else done.result()
        for query, result in zip(batch, results, strict=True):
            if query.future.done():
                # Its reader was cancelled.
                continue
            if result.error is None:
                query.future.set_result(result.value)
            else:
                query.future.set_exception(result.error)
        if self._waiting:
            self._start()
        else:
            self._idle.set()


def _run(db: Connection, batch: Sequence[Query]) -> Sequence[Result]:
    results = []
    for query in batch:
        try:
            results.append(Result(None if query.future.cancelled() else query.run(db)))
        except FILE_ERRORS as error:
            results.append(Result(None, error))
    return results
