"""Changes of the database file.

Each function gets the writer's connection, inside a transaction and with its own savepoint.

Only this module changes a status, as the lifecycle table defines: by one conditional write whose
sources and target are parameters. The returned job is read from the row after the write.
"""

import json
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from sqlite3 import Connection
from typing import Any, NamedTuple

from proxy.jobs.lifecycle import TRANSITIONS, Event
from proxy.jobs.model import Delivery, Job, JobError, JobId, Millis, WorkerId
from proxy.jobs.policy import is_body_needed
from proxy.store.base import Adopted
from proxy.store.outputs import not_appended
from proxy.store.queue_key import QueueKey
from proxy.store.sqlite import reads
from proxy.store.sqlite.disk import DiskSpace
from proxy.store.sqlite.rows import Row, new_row, read_job

SOURCES = {
    event: json.dumps(sorted(transition.sources)) for event, transition in TRANSITIONS.items()
}
# Approximate size of a job in the file, without its body.
JOB_OVERHEAD_BYTES = 1024

# A larger body is written in pieces: SQLite copies each value bound to a statement twice.
BODY_PIECE_BYTES = 1024 * 1024

# A take stops after the body that exceeds this: it loads the bodies into memory.
TAKE_MAX_BODY_BYTES = 32 * 1024 * 1024

# A write stops forgetting after the job that exceeds this: other writes wait meanwhile.
FORGET_MAX_BYTES = 8 * 1024 * 1024

# A write stops purging after the body that exceeds this, for the same reason.
PURGE_MAX_BYTES = 8 * 1024 * 1024

# Pages (4 MB in all) that one write gives back to the disk: other writes wait meanwhile.
VACUUM_PAGES_PER_WRITE = 1_000

INSERT = f"""
INSERT INTO jobs VALUES ({",".join("?" * len(Row._fields))})
RETURNING number"""  # noqa: S608 - constants

TAKE = """
UPDATE jobs SET status = :target, attempt = attempt + 1, run = :run, worker = :worker,
                taken_at = :now, drained = 0, delivered = 0, last_event = :event
WHERE id = :id AND sequence = :sequence AND status IN (SELECT value FROM json_each(:sources))
RETURNING *"""

RELEASE = """
UPDATE jobs SET status = :target, worker = NULL, taken_at = NULL, failures = failures + :counts,
                last_event = :event
WHERE id = :id AND status IN (SELECT value FROM json_each(:sources))
      AND run = coalesce(:run, run)
      AND NOT (:undelivered AND (delivered OR drained > 0))
RETURNING *"""

RETRY = """
UPDATE jobs SET status = :target, sequence = :sequence, created_at = :now,
                queued_until = queued_until + :now - created_at,
                expires_at = expires_at + :now - created_at,
                failures = 0, retries = retries + 1, worker = NULL, taken_at = NULL,
                finished_at = NULL, error_code = NULL, error_message = NULL, drained = 0,
                delivered = 0, last_event = :event, deliver_at = NULL, tries = 0
WHERE id = :id AND status IN (SELECT value FROM json_each(:sources))
      AND run = coalesce(:run, run)
RETURNING *"""

END = """
UPDATE jobs SET status = :target, finished_at = :now, error_code = :code, error_message = :message,
                last_event = :event, deliver_at = iif(webhook IS NULL, NULL, :now), tries = 0
WHERE id = :id AND status IN (SELECT value FROM json_each(:sources))
      AND run = coalesce(:run, run)
RETURNING *"""

ADOPT = """
UPDATE jobs SET run = :run, taken_at = min(taken_at, :now)
WHERE id = :id AND attempt = :attempt AND status = :running
RETURNING *"""

LIMIT_LIFE = """
UPDATE jobs SET expires_at = iif(finished_at IS NULL, :moment, expires_at),
                retention = iif(finished_at IS NULL, retention, :moment - finished_at)
WHERE id = :id RETURNING *"""

TRIED = """
UPDATE jobs SET deliver_at = :again_at, tries = tries + 1
WHERE id = :id AND attempt = :attempt AND retries = :retries AND tries = :tries
      AND deliver_at IS NOT NULL"""

# SQLite knows the length of a value without reading it.
FORGETTABLE = """
SELECT number, (SELECT coalesce(sum(length(output)), 0) FROM outputs WHERE job = number)
             + (SELECT coalesce(sum(length(output)), 0) FROM results WHERE job = number)
             + (SELECT coalesce(sum(length(body)), 0) FROM works WHERE job = number)
FROM jobs
WHERE finished_at IS NOT NULL AND deliver_at IS NULL AND finished_at + retention <= ?
ORDER BY finished_at + retention LIMIT ?"""

BODY_BYTES = "SELECT coalesce(sum(length(body)), 0) FROM works WHERE job = ?"

FORGET = "DELETE FROM jobs WHERE number IN (SELECT value FROM json_each(?))"

COUNT = """
INSERT INTO ended VALUES (:endpoint, :name, 1)
ON CONFLICT (endpoint, name) DO UPDATE SET number = number + 1"""

LOG_END = "SELECT coalesce(max(cursor) + 1, 0) FROM outputs WHERE job = ?"


@dataclass(frozen=True, slots=True)
class Settlement:
    """The arguments of `JobStore.settle`."""

    job_id: JobId
    event: Event
    now: Millis
    run: int | None = None
    error: JobError | None = None
    counts: bool = False
    output: bytes | None = None
    undelivered: bool = False
    # The new sequence, for `retry` only.
    sequence: int | None = None

    def parameters(self) -> dict[str, Any]:
        """Return the parameters of `RELEASE`, `RETRY` and `END`."""
        return {
            "id": self.job_id,
            "event": self.event,
            "target": TRANSITIONS[self.event].target,
            "sources": SOURCES[self.event],
            "now": self.now,
            "run": self.run,
            "counts": self.counts,
            "undelivered": self.undelivered,
            "code": self.error and self.error.code,
            "message": self.error and self.error.message,
            "sequence": self.sequence,
        }


def submit(db: Connection, job: Job, disk_space: DiskSpace) -> Job:
    """Insert a new job and return it; if its id or its key exists, return the existing job.

    Raises `StoreFullError` and `OtherSubmissionError`.
    """
    known = reads.find(db, job.id) or reads.keyed(db, job.submission)
    if known is not None:
        return known
    work = job.submission.work
    disk_space.admit(len(work.body) + JOB_OVERHEAD_BYTES)
    ((number,),) = db.execute(INSERT, new_row(job)).fetchall()
    _write_body(db, number, work.body, job.submission.s3_config)
    return job


def _write_body(db: Connection, number: int, body: bytes, s3_config: bytes | None) -> None:
    if len(body) <= BODY_PIECE_BYTES:
        db.execute("INSERT INTO works VALUES (?, ?, ?)", (number, body, s3_config))
        return
    db.execute("INSERT INTO works VALUES (?, zeroblob(?), ?)", (number, len(body), s3_config))
    with memoryview(body) as view, db.blobopen("works", "body", number) as blob:
        for start in range(0, len(body), BODY_PIECE_BYTES):
            blob.write(view[start : start + BODY_PIECE_BYTES])


class Taken(NamedTuple):
    """The taken jobs, and the queue keys that were left because of `TAKE_MAX_BODY_BYTES`."""

    jobs: list[Job]
    left: Sequence[QueueKey]


def take(
    db: Connection, places: Sequence[QueueKey], worker: WorkerId, now: Millis, run: int
) -> Taken:
    """Take the given jobs that are still queued with these sequences.

    Stops after the body that exceeds `TAKE_MAX_BODY_BYTES` in total.
    """
    target = TRANSITIONS[Event.TAKE].target
    common = {
        "event": Event.TAKE,
        "target": target,
        "sources": SOURCES[Event.TAKE],
        "worker": worker,
        "now": now,
        "run": run,
    }
    taken: list[Job] = []
    size = 0
    for number, place in enumerate(places):
        if size >= TAKE_MAX_BODY_BYTES:
            return Taken(taken, places[number:])
        row = _change(db, TAKE, common | {"id": place.job_id, "sequence": place.sequence})
        if row is not None:
            if row.attempt > 1:
                db.execute("DELETE FROM outputs WHERE job = ?", (row.number,))
            taken.append(_with_body(db, row))
            size += len(taken[-1].submission.work.body)
    return Taken(taken, ())


def settle(db: Connection, settlement: Settlement) -> Job | None:
    """Apply an event; return the resulting job, or None if it did not apply."""
    match settlement.event:
        case Event.RELEASE:
            row = _change(db, RELEASE, settlement.parameters())
            return None if row is None else _with_body(db, row)
        case Event.RETRY:
            return _retry(db, settlement)
        case _:
            return _end(db, settlement)


class Purged(NamedTuple):
    """The purged jobs, and the queue keys that were left because of `PURGE_MAX_BYTES`."""

    jobs: list[Job]
    left: Sequence[QueueKey]


def purge(db: Connection, places: Sequence[QueueKey], now: Millis, error: JobError) -> Purged:
    """Cancel the given jobs that are still queued.

    Stops after the body that exceeds `PURGE_MAX_BYTES` in total: the pages of a body that is
    deleted are read and written.
    """
    jobs: list[Job] = []
    size = 0
    # Narrower than the sources of `cancel`, so that running jobs continue.
    parameters = Settlement(JobId(""), Event.CANCEL, now, error=error).parameters()
    parameters["sources"] = SOURCES[Event.TAKE]
    for number, place in enumerate(places):
        if size > PURGE_MAX_BYTES:
            return Purged(jobs, places[number:])
        row = _change(db, END, parameters | {"id": place.job_id})
        if row is None:
            continue
        job = read_job(row)
        jobs.append(job)
        db.execute(COUNT, {"endpoint": row.endpoint, "name": row.status})
        if not is_body_needed(job):
            [[body_bytes]] = db.execute(BODY_BYTES, (row.number,)).fetchall()
            size += body_bytes
            db.execute("DELETE FROM works WHERE job = ?", (row.number,))
    return Purged(jobs, ())


def limit_life(db: Connection, job_id: JobId, moment: Millis) -> Job | None:
    """End the life of a job at `moment`; return the job, or None if it does not exist."""
    row = _change(db, LIMIT_LIFE, {"id": job_id, "moment": moment})
    return None if row is None else reads.find(db, job_id)


def tried(db: Connection, delivery: Delivery, again_at: Millis | None) -> None:
    """Record a try of a delivery; `again_at` None ends the delivery."""
    job = delivery.job
    key = {
        "id": job.id,
        "attempt": job.attempt,
        "retries": job.retry_count,
        "tries": delivery.tries,
    }
    db.execute(TRIED, key | {"again_at": again_at})


def hasten(db: Connection, latest: Millis, now: Millis) -> int:
    """Make the deliveries due at `now` that are due after `latest`; return their number."""
    sql = "UPDATE jobs INDEXED BY jobs_to_deliver SET deliver_at = ? WHERE deliver_at > ?"
    return db.execute(sql, (now, latest)).rowcount


def forget(db: Connection, now: Millis, limit: int) -> int:
    """Delete jobs with expired retention, and give some of the free pages back to the disk.

    Returns the number of deleted jobs.
    """
    numbers: list[int] = []
    size = 0
    with closing(db.execute(FORGETTABLE, (now, limit))) as rows:
        for number, job_size in rows:
            numbers.append(number)
            size += job_size
            if size > FORGET_MAX_BYTES:
                break
    forgotten = db.execute(FORGET, (json.dumps(numbers),)).rowcount
    if reads.has_excess_free_pages(db):
        for _ in range(VACUUM_PAGES_PER_WRITE):
            # One page each: for more, the statement needs more steps than the sqlite3 module makes.
            db.execute("PRAGMA incremental_vacuum(1)")
    return forgotten


def append(
    db: Connection, job_id: JobId, run: int, outputs: Sequence[bytes], start: int | None
) -> int | None:
    """Append to the output log of a run that is in progress; return the cursor after it, else None.

    No change can come between the check and the write, because there is only one writer.
    """
    sql = "SELECT number FROM jobs WHERE id = ? AND run = ? AND status = ?"
    found = db.execute(sql, (job_id, run, TRANSITIONS[Event.TAKE].target)).fetchall()
    if not found:
        return None
    [[job]] = found
    [[cursor]] = db.execute(LOG_END, (job,)).fetchall()
    new = not_appended(outputs, cursor, start)
    rows = [(job, cursor + offset, output) for offset, output in enumerate(new)]
    db.executemany("INSERT INTO outputs VALUES (?, ?, ?)", rows)
    return int(cursor) + len(rows)


def rewrite(db: Connection, job_id: JobId, run: int, start: int, outputs: Sequence[bytes]) -> bool:
    """Replace the outputs of a run from `start` on, unless any was delivered."""
    sql = """SELECT number FROM jobs WHERE id = ? AND run = ? AND status = ?
             AND NOT (delivered OR drained > 0)"""
    found = db.execute(sql, (job_id, run, TRANSITIONS[Event.TAKE].target)).fetchall()
    if not found:
        return False
    [[job]] = found
    db.execute("DELETE FROM outputs WHERE job = ? AND cursor >= ?", (job, start))
    rows = [(job, start + offset, output) for offset, output in enumerate(outputs)]
    db.executemany("INSERT INTO outputs VALUES (?, ?, ?)", rows)
    return True


def consume(db: Connection, job_id: JobId, attempt: int, cursor: int) -> bool:
    """Record the cursor up to which a client has consumed the output of an attempt; it never
    decreases.

    Returns False if the attempt was lost.
    """
    sql = """UPDATE jobs SET drained = max(drained, :cursor), delivered = 1
             WHERE id = :id AND attempt = :attempt AND status != :queued"""
    queued = TRANSITIONS[Event.RELEASE].target
    parameters = {"id": job_id, "attempt": attempt, "cursor": cursor, "queued": queued}
    return db.execute(sql, parameters).rowcount > 0


def adopt(db: Connection, job_id: JobId, attempt: int, run: int, now: Millis) -> Adopted | None:
    """Set the number of a running attempt, or return None."""
    running = TRANSITIONS[Event.TAKE].target
    parameters = {"id": job_id, "attempt": attempt, "run": run, "now": now, "running": running}
    row = _change(db, ADOPT, parameters)
    if row is None:
        return None
    [[cursor]] = db.execute(LOG_END, (row.number,)).fetchall()
    return Adopted(read_job(row), cursor)


def _retry(db: Connection, settlement: Settlement) -> Job | None:
    row = _change(db, RETRY, settlement.parameters())
    if row is None:
        return None
    db.execute("DELETE FROM results WHERE job = ?", (row.number,))
    db.execute("DELETE FROM outputs WHERE job = ?", (row.number,))
    db.execute(COUNT, {"endpoint": row.endpoint, "name": settlement.event})
    return _with_body(db, row)


def _end(db: Connection, settlement: Settlement) -> Job | None:
    row = _change(db, END, settlement.parameters())
    if row is None:
        return None
    if settlement.output is not None:
        db.execute("INSERT INTO results VALUES (?, ?)", (row.number, settlement.output))
    if _after_end(db, row):
        return _with_body(db, row, settlement.output)
    return read_job(row, output=settlement.output)


def _after_end(db: Connection, row: Row) -> bool:
    """Count an ended job, and delete its body unless it is needed; return True if it was kept."""
    db.execute(COUNT, {"endpoint": row.endpoint, "name": row.status})
    is_kept = is_body_needed(read_job(row))
    if not is_kept:
        db.execute("DELETE FROM works WHERE job = ?", (row.number,))
    return is_kept


def _change(db: Connection, sql: str, parameters: dict[str, Any]) -> Row | None:
    """Execute a conditional write to one row; return the new row, or None if none matched."""
    rows = db.execute(sql, parameters).fetchall()
    return Row(*rows[0]) if rows else None


def _with_body(db: Connection, row: Row, output: bytes | None = None) -> Job:
    works = db.execute("SELECT body, s3_config FROM works WHERE job = ?", (row.number,)).fetchall()
    body, s3_config = works[0] if works else (None, None)
    return read_job(row, body, s3_config, output)
