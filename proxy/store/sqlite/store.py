"""A job store in one SQLite file, for one process.

A job is acknowledged only after it has been committed to the disk. The index of queues, deadlines
and counts is in memory, and is rebuilt from the file when the store is opened.

The file is authoritative. A method asks the writer for a conditional write, and the result is
applied to the index after the commit. Only a queue key leaves the index before the commit, so
that two takes never ask for the same job.
"""

from collections.abc import AsyncIterator, Collection, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from sqlite3 import Connection

import structlog

from proxy.jobs.lifecycle import Event, Status
from proxy.jobs.model import (
    Counts,
    Delivery,
    EndpointId,
    Job,
    JobError,
    JobId,
    JobState,
    Millis,
    Owner,
    Receiver,
    Submission,
    WorkerId,
)
from proxy.jobs.policy import deadline
from proxy.jobs.served_model import Model
from proxy.store.base import Adopted
from proxy.store.errors import StoreError
from proxy.store.job_index import JobIndex
from proxy.store.outputs import LogPage, StoredResult
from proxy.store.queue_key import QueueKey
from proxy.store.sqlite import due_deliveries, reads, served_models, writes
from proxy.store.sqlite.database import Database
from proxy.store.sqlite.disk import Disk
from proxy.store.sqlite.writer import StartRunner

log = structlog.get_logger()

# Jobs that are purged or forgotten in one write: other writes wait meanwhile.
JOBS_PER_WRITE = 200


class SqliteStore:
    """`JobStore` in a SQLite file."""

    durable = True

    def __init__(self, path: Path, disk: Disk, start_runner: StartRunner) -> None:
        self._database = Database(path, disk, start_runner)
        self._index = JobIndex()

    @asynccontextmanager
    async def open(self) -> AsyncIterator[None]:
        async with self._database.open(self._load):
            yield

    @property
    def commits(self) -> int:
        """The number of committed transactions since the store was opened."""
        return self._database.commits

    @property
    def gone(self) -> str:
        return self._database.gone

    async def until_gone(self) -> str:
        return await self._database.until_gone()

    async def running(self) -> Sequence[Job]:
        return await self._database.read(reads.running)

    async def has_secrets(self) -> bool:
        return await self._database.read(reads.has_secrets)

    async def submit(self, submission: Submission, now: Millis) -> Job:
        job = Job(
            submission, sequence=self._index.next_sequence(), status=Status.IN_QUEUE, created_at=now
        )
        return await self._database.write(
            lambda db: writes.submit(db, job, self._database.disk_space),
            lambda stored: self._index.note(job) if stored is job else None,
            size=len(submission.work.body),
        )

    async def get(self, endpoint: EndpointId, owner: Owner, job_id: JobId) -> Job | None:
        # An unknown id and a job of another owner take the same path, and thus the same time.
        return await self._database.read(lambda db: reads.get(db, endpoint, owner, job_id))

    async def find(self, job_id: JobId) -> Job | None:
        return await self._database.read(lambda db: reads.find(db, job_id))

    async def recent(
        self,
        endpoint: EndpointId,
        owner: Owner,
        *,
        before: int | None,
        limit: int,
        status: Status | None = None,
    ) -> Sequence[Job]:
        return await self._database.read(
            lambda db: reads.recent(db, endpoint, owner, before, limit, status)
        )

    async def take(
        self,
        endpoint: EndpointId,
        worker: WorkerId,
        *,
        limit: int,
        light_limit: int,
        now: Millis,
        run: int,
    ) -> Sequence[Job]:
        jobs: list[Job] = []
        if self.gone:
            return jobs
        # Another round only if all jobs of this one have been cancelled in the meantime.
        while not jobs:
            places = self._index.pop(endpoint, limit, now, light=False)
            places += self._index.pop(endpoint, light_limit, now, light=True)
            if not places:
                break
            try:
                jobs = await self._hand_out(endpoint, places, worker, now, run)
            except StoreError as error:
                # The jobs stay in the queue.
                log.warning("store.cannot_take", jobs=len(places), why=str(error))
                break
        return jobs

    async def settle(
        self,
        job_id: JobId,
        event: Event,
        *,
        now: Millis,
        run: int | None = None,
        error: JobError | None = None,
        counts: bool = False,
        output: bytes | None = None,
        undelivered: bool = False,
    ) -> Job | None:
        self._database.require()
        if event is Event.TAKE:
            return None
        sequence = self._index.next_sequence() if event is Event.RETRY else None
        settlement = writes.Settlement(
            job_id, event, now, run, error, counts, output, undelivered, sequence
        )
        size = 0 if output is None else len(output)
        return await self._database.write(
            lambda db: writes.settle(db, settlement), self._note, size=size
        )

    async def purge(
        self,
        endpoint: EndpointId,
        owner: Owner,
        now: Millis,
        error: JobError,
        *,
        before: int,
        limit: int,
    ) -> Sequence[Job]:
        self._database.require()
        purged: list[Job] = []
        # Another round only if all jobs of this one have ended in the meantime.
        while not purged:
            places = self._index.pop_owned(endpoint, owner, before, min(limit, JOBS_PER_WRITE))
            if not places:
                break
            purged = await self._purge(endpoint, places, now, error)
        return purged

    async def due(self, now: Millis, limit: int) -> Sequence[Job]:
        self._database.require()
        job_ids = self._index.due(now, limit)
        if not job_ids:
            return []
        found = await self._database.read(lambda db: reads.outlines(db, job_ids))
        jobs = {
            job.id: job for job in found if (moment := deadline(job)) is not None and moment <= now
        }
        return [jobs[job_id] for job_id in job_ids if job_id in jobs]

    async def forget(self, now: Millis, limit: int) -> int:
        forgotten = 0
        written = 1
        while (
            written
            and forgotten < limit
            and await self._database.read(lambda db: reads.has_forgettable(db, now))
        ):
            batch_size = min(limit - forgotten, JOBS_PER_WRITE)
            written = await self._database.write(partial(writes.forget, now=now, limit=batch_size))
            forgotten += written
        return forgotten

    async def limit_life(self, job_id: JobId, moment: Millis) -> Job | None:
        return await self._database.write(
            lambda db: writes.limit_life(db, job_id, moment),
            lambda job: self._index.watch(job) if job is not None else None,
        )

    async def deliveries(
        self,
        now: Millis,
        limit: int,
        besides: Collection[Receiver] = (),
        besides_owners: Collection[Owner] = (),
    ) -> Sequence[Delivery]:
        return await self._database.read(
            lambda db: due_deliveries.deliveries(db, now, limit, besides, besides_owners)
        )

    async def hasten(self, latest: Millis, now: Millis) -> int:
        if not await self._database.read(lambda db: reads.has_deliveries_after(db, latest)):
            return 0
        return await self._database.write(lambda db: writes.hasten(db, latest, now))

    async def newest(self, until: Millis) -> Millis | None:
        return await self._database.read(lambda db: reads.newest(db, until))

    async def served_models(self) -> Mapping[EndpointId, Sequence[Model]]:
        return await self._database.read(served_models.served_models)

    async def set_served_models(self, endpoint: EndpointId, models: Sequence[Model]) -> None:
        await self._database.write(lambda db: served_models.set_served_models(db, endpoint, models))

    async def tried(self, delivery: Delivery, again_at: Millis | None) -> None:
        await self._database.write(lambda db: writes.tried(db, delivery, again_at))

    async def adopt(self, job_id: JobId, attempt: int, run: int, now: Millis) -> Adopted | None:
        return await self._database.write(
            lambda db: writes.adopt(db, job_id, attempt, run, now),
            lambda adopted: self._index.watch(adopted.job) if adopted is not None else None,
        )

    async def append(
        self, job_id: JobId, run: int, outputs: Sequence[bytes], start: int | None = None
    ) -> int | None:
        size = sum(map(len, outputs))
        return await self._database.write(
            lambda db: writes.append(db, job_id, run, outputs, start), size=size
        )

    async def rewrite(self, job_id: JobId, run: int, start: int, outputs: Sequence[bytes]) -> bool:
        size = sum(map(len, outputs))
        return await self._database.write(
            lambda db: writes.rewrite(db, job_id, run, start, outputs), size=size
        )

    async def read(self, job_id: JobId, cursor: int, limit: int) -> tuple[Sequence[bytes], int]:
        part = await self._database.read(lambda db: reads.outputs(db, job_id, cursor, limit))
        return part, cursor + len(part)

    async def look(
        self,
        endpoint: EndpointId,
        owner: Owner,
        job_id: JobId,
        cursor: int | None,
        *,
        limit: int,
        max_bytes: int,
    ) -> LogPage | None:
        return await self._database.read(
            lambda db: reads.look(db, endpoint, owner, job_id, cursor, limit, max_bytes)
        )

    async def result(
        self,
        endpoint: EndpointId,
        owner: Owner,
        job_id: JobId,
        *,
        max_bytes: int,
        cursor: int | None = None,
    ) -> StoredResult | None:
        return await self._database.read(
            lambda db: reads.result(db, endpoint, owner, job_id, max_bytes, cursor)
        )

    async def consume(self, job_id: JobId, attempt: int, cursor: int) -> bool:
        return await self._database.write(lambda db: writes.consume(db, job_id, attempt, cursor))

    async def deliver(self, job_id: JobId, attempt: int) -> bool:
        return await self.consume(job_id, attempt, 0)

    async def counts(self, endpoint: EndpointId) -> Counts:
        self._database.require()
        return self._index.counts(endpoint)

    def ahead(self, job: JobState) -> int:
        return self._index.ahead(job)

    def all_queued(self, endpoint: EndpointId) -> int:
        return self._index.all_queued(endpoint)

    def queued(self, endpoint: EndpointId, *, light: bool, before: int | None = None) -> int:
        return self._index.queued(endpoint, light=light, before=before)

    def is_unfinished(self, job_id: JobId) -> bool:
        return self._index.is_unfinished(job_id)

    def next_sequence(self) -> int:
        return self._index.next_sequence()

    async def _hand_out(
        self,
        endpoint: EndpointId,
        places: Sequence[QueueKey],
        worker: WorkerId,
        now: Millis,
        run: int,
    ) -> list[Job]:
        def note(taken: writes.Taken) -> None:
            self._note_all(taken.jobs)
            self._index.put_back(endpoint, taken.left)

        taken = await self._database.write(
            lambda db: writes.take(db, places, worker, now, run),
            note,
            lambda: self._index.put_back(endpoint, places),
        )
        return taken.jobs

    async def _purge(
        self, endpoint: EndpointId, places: Sequence[QueueKey], now: Millis, error: JobError
    ) -> list[Job]:
        def note(purged: writes.Purged) -> None:
            self._note_all(purged.jobs)
            self._index.put_back(endpoint, purged.left)

        purged = await self._database.write(
            lambda db: writes.purge(db, places, now, error),
            note,
            lambda: self._index.put_back(endpoint, places),
        )
        return purged.jobs

    def _load(self, db: Connection) -> None:
        self._index.load(
            reads.queued(db), reads.running(db), reads.ended(db), reads.last_sequence(db)
        )

    def _note(self, job: Job | None) -> None:
        if job is not None:
            self._index.note(job)

    def _note_all(self, jobs: Iterable[Job]) -> None:
        for job in jobs:
            self._index.note(job)
