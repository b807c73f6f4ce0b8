"""The due deliveries in the database file, by receiver.

The table `receivers` has the due time of the earliest delivery to each receiver; a trigger keeps it
correct. So a query finds the receivers that have anything due, and of each only the rows that it
returns: deliveries to a receiver that is skipped cost nothing, however many wait.
"""

from collections.abc import Collection, Iterator
from contextlib import ExitStack, closing
from heapq import merge, nsmallest
from itertools import islice
from sqlite3 import Connection
from typing import NamedTuple

from proxy.jobs.model import Delivery, Millis, Owner, Receiver
from proxy.store.sqlite.rows import Row, read_job

# `receiver_address` is a function of the connection that applies the migration.
RECEIVERS_MIGRATION = """
    -- Scheme, host and port of the webhook. A file of an older version does not have the port.
    ALTER TABLE jobs ADD COLUMN receiver TEXT;
    UPDATE jobs SET receiver = receiver_address(webhook) WHERE webhook IS NOT NULL;
    DROP INDEX jobs_to_deliver;
    CREATE INDEX jobs_to_deliver ON jobs (owner, receiver, deliver_at)
        WHERE deliver_at IS NOT NULL;

    CREATE TABLE receivers (  -- those with pending deliveries
        owner      TEXT NOT NULL,
        address    TEXT NOT NULL,
        deliver_at INTEGER NOT NULL,  -- due time of the earliest delivery
        PRIMARY KEY (owner, address)
    ) STRICT, WITHOUT ROWID;
    CREATE INDEX receivers_due ON receivers (owner, deliver_at);
    INSERT INTO receivers
        SELECT owner, receiver, min(deliver_at) FROM jobs
        WHERE deliver_at IS NOT NULL GROUP BY owner, receiver;

    -- A job is inserted, and deleted, without a pending delivery.
    CREATE TRIGGER receivers_follow AFTER UPDATE OF deliver_at ON jobs
    WHEN old.deliver_at IS NOT new.deliver_at
    BEGIN
        DELETE FROM receivers
            WHERE owner = old.owner AND address = old.receiver AND deliver_at = old.deliver_at;
        INSERT INTO receivers
            SELECT owner, receiver, deliver_at FROM jobs
            WHERE owner = new.owner AND receiver = new.receiver AND deliver_at IS NOT NULL
            ORDER BY deliver_at LIMIT 1
            ON CONFLICT DO UPDATE SET deliver_at = excluded.deliver_at
                WHERE excluded.deliver_at < receivers.deliver_at;
    END;
"""

NEXT_OWNER = "SELECT owner FROM receivers WHERE owner > ? ORDER BY owner LIMIT 1"

DUE_RECEIVERS = """
SELECT deliver_at, owner, address FROM receivers WHERE owner = ? AND deliver_at <= ?
ORDER BY deliver_at LIMIT ?"""

DUE_JOBS = """
SELECT * FROM jobs
WHERE owner = ? AND receiver = ? AND deliver_at IS NOT NULL AND deliver_at <= ?
ORDER BY deliver_at, number LIMIT ?"""


class DueReceiver(NamedTuple):
    """A receiver, and the due time of its earliest delivery."""

    deliver_at: int
    owner: str
    address: str


def deliveries(
    db: Connection,
    now: Millis,
    limit: int,
    besides: Collection[Receiver],
    besides_owners: Collection[Owner],
) -> list[Delivery]:
    """Return due deliveries, earliest first, with outlines of their jobs."""
    found: list[DueReceiver] = []
    for owner in _owners(db):
        if owner not in besides_owners:
            # All of `besides` can be receivers of this owner, and due.
            rows = db.execute(DUE_RECEIVERS, (owner, now, limit + len(besides)))
            due = (DueReceiver(*row) for row in rows)
            found += [one for one in due if (one.owner, one.address) not in besides]
    with ExitStack() as stack:
        cursors = [
            stack.enter_context(closing(db.execute(DUE_JOBS, (one.owner, one.address, now, limit))))
            # No more receivers are needed, because each has a due delivery.
            for one in nsmallest(limit, found)
        ]
        jobs = merge(
            *((Row(*row) for row in cursor) for cursor in cursors),
            key=lambda row: (row.deliver_at, row.number),
        )
        return [Delivery(read_job(row), row.tries) for row in islice(jobs, limit)]


def _owners(db: Connection) -> Iterator[str]:
    """Yield the owners with pending deliveries. Each costs one search in the table."""
    owner = ""
    while rows := db.execute(NEXT_OWNER, (owner,)).fetchall():
        [[owner]] = rows
        yield owner
