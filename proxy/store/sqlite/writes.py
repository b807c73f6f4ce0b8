"""What changes the file. Each function gets the writer's connection, inside a transaction with a savepoint of its own.

A status changes only here, and as the lifecycle table says: one conditional write, whose sources and target are
parameters. What it gives is the job as the row says it is now.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from sqlite3 import Connection
from typing import Any, NamedTuple

from proxy.jobs.lifecycle import TRANSITIONS, Event
from proxy.jobs.model import Delivery, Job, JobError, JobId, Millis, WorkerId
from proxy.jobs.policy import is_body_needed
from proxy.store.ready import QueueKey
from proxy.store.sqlite import reads
from proxy.store.sqlite.disk_space import DiskSpace
from proxy.store.sqlite.rows import Row, new_row, read_job

SOURCES = {
    event: json.dumps(sorted(transition.sources)) for event, transition in TRANSITIONS.items()
}
ROW_BYTES = 1024  # what a job takes beside its body, about
PIECE_BYTES = (
    1024 * 1024
)  # a larger body is written in such pieces: SQLite copies what is bound to a statement twice
TAKE_BYTES = (
    32 * 1024 * 1024
)  # of bodies in one take, and the rest of the last one: they come into memory with it
PAGES_AT_ONCE = 2_000  # given back to the disk in one write, 8 MB: others wait for it

INSERT = "INSERT INTO jobs VALUES (?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?) RETURNING number"

TAKE = """
UPDATE jobs SET status = :target, attempt = attempt + 1, worker = :worker, taken_at = :now, drained = 0,
                last_event = :event
WHERE id = :id AND sequence = :sequence AND status IN (SELECT value FROM json_each(:sources)) RETURNING *"""

RELEASE = """
UPDATE jobs SET status = :target, worker = NULL, taken_at = NULL, failures = failures + :counts, last_event = :event
WHERE id = :id AND status IN (SELECT value FROM json_each(:sources)) AND attempt = coalesce(:attempt, attempt)
RETURNING *"""

RETRY = """
UPDATE jobs SET status = :target, sequence = :sequence, created_at = :now,
                queued_until = queued_until + :now - created_at, expires_at = expires_at + :now - created_at,
                failures = 0, retries = retries + 1, worker = NULL, taken_at = NULL, finished_at = NULL,
                error_code = NULL, error_message = NULL, drained = 0, last_event = :event, deliver_at = NULL, tries = 0
WHERE id = :id AND status IN (SELECT value FROM json_each(:sources)) AND attempt = coalesce(:attempt, attempt)
RETURNING *"""

END = """
UPDATE jobs SET status = :target, finished_at = :now, error_code = :code, error_message = :message,
                last_event = :event, deliver_at = iif(webhook IS NULL, NULL, :now), tries = 0
WHERE id = :id AND status IN (SELECT value FROM json_each(:sources)) AND attempt = coalesce(:attempt, attempt)
RETURNING *"""

LIMIT_LIFE = """
UPDATE jobs SET expires_at = iif(finished_at IS NULL, :moment, expires_at),
                retention = iif(finished_at IS NULL, retention, :moment - finished_at)
WHERE id = :id RETURNING *"""

TRIED = """
UPDATE jobs SET deliver_at = :again_at, tries = tries + 1
WHERE id = :id AND attempt = :attempt AND retries = :retries AND tries = :tries AND deliver_at IS NOT NULL"""

FORGET = """
DELETE FROM jobs WHERE number IN (
    SELECT number FROM jobs WHERE finished_at IS NOT NULL AND deliver_at IS NULL AND finished_at + retention <= ?
    ORDER BY finished_at + retention LIMIT ?)"""

COUNT = """
INSERT INTO ended VALUES (:endpoint, :name, 1)
ON CONFLICT (endpoint, name) DO UPDATE SET number = number + 1"""

LOG_END = "SELECT coalesce(max(cursor) + 1, 0) FROM outputs WHERE job = ?"


@dataclass(frozen=True, slots=True)
class Settlement:
    """An event to be raised, as `JobStore.settle` is told of it."""

    job_id: JobId
    event: Event
    now: Millis
    attempt: int | None = None
    error: JobError | None = None
    counts: bool = False
    output: bytes | None = None
    sequence: int | None = None  # the new place, for `retry`

    def parameters(self) -> dict[str, Any]:
        """For `RELEASE`, `RETRY` and `END`."""
        return {
            "id": self.job_id, "event": self.event, "target": TRANSITIONS[self.event].target,
            "sources": SOURCES[self.event], "now": self.now, "attempt": self.attempt, "counts": self.counts,
            "code": self.error and self.error.code, "message": self.error and self.error.message,
            "sequence": self.sequence,
        }  # fmt: skip


def submit(db: Connection, job: Job, room: DiskSpace) -> Job:
    """Write a new job. If there is one by this id, give that."""
    known = reads.find(db, job.id)
    if known is not None:
        return known
    work = job.submission.work
    room.admit(len(work.body) + ROW_BYTES)
    ((number,),) = db.execute(INSERT, new_row(job)).fetchall()
    _write_body(db, number, work.body, job.submission.s3_config)
    return job


def _write_body(db: Connection, number: int, body: bytes, s3_config: bytes | None) -> None:
    if len(body) <= PIECE_BYTES:
        db.execute("INSERT INTO works VALUES (?, ?, ?)", (number, body, s3_config))
        return
    db.execute("INSERT INTO works VALUES (?, zeroblob(?), ?)", (number, len(body), s3_config))
    with memoryview(body) as view, db.blobopen("works", "body", number) as blob:
        for start in range(0, len(body), PIECE_BYTES):
            blob.write(view[start : start + PIECE_BYTES])


class Taken(NamedTuple):
    """The jobs that were taken, and the places that were not come to: enough bytes for once."""

    jobs: list[Job]
    left: Sequence[QueueKey]


def take(db: Connection, places: Sequence[QueueKey], worker: WorkerId, now: Millis) -> Taken:
    """Let those of these jobs be taken that still stand in these places, up to `TAKE_BYTES` of their bodies."""
    target = TRANSITIONS[Event.TAKE].target
    common = {
        "event": Event.TAKE,
        "target": target,
        "sources": SOURCES[Event.TAKE],
        "worker": worker,
        "now": now,
    }
    taken: list[Job] = []
    size = 0
    for number, place in enumerate(places):
        if size >= TAKE_BYTES:
            return Taken(taken, places[number:])
        row = _change(db, TAKE, common | {"id": place.job_id, "sequence": place.sequence})
        if row is not None:
            if row.attempt > 1:
                db.execute("DELETE FROM outputs WHERE job = ?", (row.number,))
            taken.append(_with_body(db, row))
            size += len(taken[-1].submission.work.body)
    return Taken(taken, ())


def settle(db: Connection, settlement: Settlement) -> Job | None:
    """Raise an event; None when it cannot happen any more."""
    match settlement.event:
        case Event.RELEASE:
            row = _change(db, RELEASE, settlement.parameters())
            return None if row is None else _with_body(db, row)
        case Event.RETRY:
            return _retry(db, settlement)
        case _:
            return _end(db, settlement)


def purge(db: Connection, job_ids: Sequence[JobId], now: Millis, error: JobError) -> list[Job]:
    """Cancel those of these jobs that are in the queue; gives outlines."""
    ended = []
    for job_id in job_ids:
        settlement = Settlement(job_id, Event.CANCEL, now, error=error)
        queued = {
            "sources": SOURCES[Event.TAKE]
        }  # narrower than those of `cancel`: what runs goes on
        row = _change(db, END, settlement.parameters() | queued)
        if row is not None:
            _close(db, row)
            ended.append(read_job(row))
    return ended


def limit_life(db: Connection, job_id: JobId, moment: Millis) -> Job | None:
    """Let a job's life end then."""
    row = _change(db, LIMIT_LIFE, {"id": job_id, "moment": moment})
    return None if row is None else reads.find(db, job_id)


def tried(db: Connection, delivery: Delivery, again_at: Millis | None) -> None:
    """Note that a delivery was tried."""
    job = delivery.job
    key = {
        "id": job.id,
        "attempt": job.attempt,
        "retries": job.retry_count,
        "tries": delivery.tries,
    }
    db.execute(TRIED, key | {"again_at": again_at})


def forget(db: Connection, now: Millis, limit: int) -> int:
    """Drop jobs whose retention has ended, and give some of the file's spare room back to the disk."""
    forgotten = db.execute(FORGET, (now, limit)).rowcount
    if reads.has_spare(db):
        for _ in range(PAGES_AT_ONCE):
            db.execute(
                "PRAGMA incremental_vacuum(1)"
            )  # more than one at a time needs more steps than Python makes
    return forgotten


def append(db: Connection, job_id: JobId, attempt: int, outputs: Sequence[bytes]) -> int | None:
    """Add to the log of a run that goes on. Nothing comes between the look and the write: this is the only writer."""
    sql = "SELECT number FROM jobs WHERE id = ? AND attempt = ? AND status = ?"
    found = db.execute(sql, (job_id, attempt, TRANSITIONS[Event.TAKE].target)).fetchall()
    if not found:
        return None
    [[job]] = found
    [[cursor]] = db.execute(LOG_END, (job,)).fetchall()
    rows = [(job, cursor + offset, output) for offset, output in enumerate(outputs)]
    db.executemany("INSERT INTO outputs VALUES (?, ?, ?)", rows)
    return int(cursor) + len(rows)


def consume(db: Connection, job_id: JobId, attempt: int, cursor: int) -> None:
    """Note how far a client has come."""
    sql = "UPDATE jobs SET drained = :cursor WHERE id = :id AND attempt = :attempt AND drained < :cursor"
    db.execute(sql, {"id": job_id, "attempt": attempt, "cursor": cursor})


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
    if _close(db, row):
        return _with_body(db, row, settlement.output)
    return read_job(row, output=settlement.output)


def _close(db: Connection, row: Row) -> bool:
    """What follows from the end of a job. Whether its body is still there."""
    db.execute(COUNT, {"endpoint": row.endpoint, "name": row.status})
    is_kept = is_body_needed(read_job(row))
    if not is_kept:
        db.execute("DELETE FROM works WHERE job = ?", (row.number,))
    return is_kept


def _change(db: Connection, sql: str, parameters: dict[str, Any]) -> Row | None:
    """A conditional write to one row, and the row after it; None when the condition did not hold."""
    rows = db.execute(sql, parameters).fetchall()
    return Row(*rows[0]) if rows else None


def _with_body(db: Connection, row: Row, output: bytes | None = None) -> Job:
    works = db.execute("SELECT body, s3_config FROM works WHERE job = ?", (row.number,)).fetchall()
    body, s3_config = works[0] if works else (None, None)
    return read_job(row, body, s3_config, output)
