"""A job store in memory.

Its jobs are lost when the process ends. Tests use it as the reference for other stores.
"""

import asyncio
from collections.abc import AsyncIterator, Collection, Mapping, Sequence
from contextlib import asynccontextmanager

from msgspec.structs import replace

from proxy.jobs.lifecycle import TRANSITIONS, Event, Status, advance
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
from proxy.jobs.served_model import Model
from proxy.store import changes
from proxy.store.base import Adopted
from proxy.store.delivery_index import DeliveryIndex
from proxy.store.errors import OtherSubmissionError, StoreFullError
from proxy.store.job_index import DeadlineIndex, JobIndex
from proxy.store.output_logs import OutputLogs
from proxy.store.outputs import LogPage, StoredResult, first_outputs

JOBS_MAX_BYTES = 512 * 1024 * 1024

# Approximate size of a job in memory, without its body.
JOB_OVERHEAD_BYTES = 1024


class MemoryStore:
    """`JobStore` in dictionaries. No method awaits anything, so each one is atomic."""

    durable = False

    def __init__(self, max_bytes: int = JOBS_MAX_BYTES) -> None:
        self._index = JobIndex()
        self._max_bytes = max_bytes
        # Of jobs, without their logs.
        self._bytes = 0
        self._jobs: dict[JobId, Job] = {}
        self._keyed: dict[tuple[EndpointId, Owner, str], JobId] = {}
        self._logs = OutputLogs()
        self._retentions = DeadlineIndex()
        self._served: dict[EndpointId, Sequence[Model]] = {}
        self._deliveries = DeliveryIndex(lambda job_id: self._jobs[job_id].submission.receiver)
        self._tries: dict[JobId, int] = {}

    @asynccontextmanager
    async def open(self) -> AsyncIterator[None]:
        yield

    @property
    def gone(self) -> str:
        return ""

    async def until_gone(self) -> str:
        await asyncio.Event().wait()
        return self.gone

    async def running(self) -> Sequence[Job]:
        jobs = self._jobs.values()
        return [job.outline() for job in jobs if job.status is Status.IN_PROGRESS]

    async def has_secrets(self) -> bool:
        # None is left from an earlier start.
        return False

    async def submit(self, submission: Submission, now: Millis) -> Job:
        if (known := self._jobs.get(submission.id)) is not None:
            return known
        if (job_id := self._keyed.get(_key_of(submission))) is not None:
            keyed = self._jobs[job_id]
            if keyed.submission.key != submission.key:
                raise OtherSubmissionError
            return keyed.outline()
        used = self._bytes + self._logs.bytes
        if used + JOB_OVERHEAD_BYTES + len(submission.work.body) > self._max_bytes:
            raise StoreFullError(f"durable jobs use more than {self._max_bytes} bytes of memory")
        job = Job(
            submission, sequence=self._index.next_sequence(), status=Status.IN_QUEUE, created_at=now
        )
        if submission.key is not None:
            self._keyed[_key_of(submission)] = job.id
        return self._note(job)

    async def get(self, endpoint: EndpointId, owner: Owner, job_id: JobId) -> Job | None:
        job = self._owned(endpoint, owner, job_id)
        return None if job is None else job.outline()

    async def find(self, job_id: JobId) -> Job | None:
        return self._jobs.get(job_id)

    async def recent(
        self,
        endpoint: EndpointId,
        owner: Owner,
        *,
        before: int | None,
        limit: int,
        status: Status | None = None,
    ) -> Sequence[Job]:
        found = [
            job
            for job in self._jobs.values()
            if job.endpoint == endpoint
            and job.submission.owner == owner
            and (before is None or job.sequence < before)
            and (status is None or job.status is status)
        ]
        return [job.outline() for job in sorted(found, key=lambda job: -job.sequence)[:limit]]

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
        places = self._index.pop(endpoint, limit, now, light=False)
        places += self._index.pop(endpoint, light_limit, now, light=True)
        return [self._hand_out(place.job_id, worker, now, run) for place in places]

    def _hand_out(self, job_id: JobId, worker: WorkerId, now: Millis, run: int) -> Job:
        """Apply `take` to a job whose key has been popped from the index."""
        # The output log belongs to the current attempt.
        self._logs.drop(job_id)
        return self._note(changes.taken(self._jobs[job_id], worker, now, run))

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
        job = self._jobs.get(job_id)
        if job is None or (run is not None and run != job.run):
            return None
        if undelivered and job.delivered:
            return None
        if advance(job.status, event) is None or event is Event.TAKE:
            return None
        if event is Event.RETRY:
            return self._retry(job, now)
        if event is Event.RELEASE:
            return self._note(changes.released(job, counts=counts))
        if job.submission.webhook is not None:
            self._deliveries.set(job_id, now)
            self._tries[job_id] = 0
        return self._note(changes.ended(job, event, now, error, output))

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
        waiting = self._index.pop_owned(endpoint, owner, before, limit)
        purged = [
            await self.settle(place.job_id, Event.CANCEL, now=now, error=error) for place in waiting
        ]
        return [job.outline() for job in purged if job is not None]

    async def due(self, now: Millis, limit: int) -> Sequence[Job]:
        return [self._jobs[job_id].outline() for job_id in self._index.due(now, limit)]

    async def forget(self, now: Millis, limit: int) -> int:
        ended = self._retentions.due(now, limit)
        for job_id in ended:
            self._drop(job_id)
        return len(ended)

    async def limit_life(self, job_id: JobId, moment: Millis) -> Job | None:
        job = self._jobs.get(job_id)
        if job is None:
            return None
        if job.finished_at is None:
            changed = replace(job.submission, expires_at=moment)
        else:
            changed = replace(job.submission, retention=Millis(moment - job.finished_at))
        after = replace(job, submission=changed)
        self._index.watch(after)
        return self._keep(after)

    async def deliveries(
        self,
        now: Millis,
        limit: int,
        besides: Collection[Receiver] = (),
        besides_owners: Collection[Owner] = (),
    ) -> Sequence[Delivery]:
        due = self._deliveries.due(now, limit, besides, besides_owners)
        return [Delivery(self._jobs[job_id].outline(), self._tries[job_id]) for job_id in due]

    async def hasten(self, latest: Millis, now: Millis) -> int:
        late = self._deliveries.after(latest)
        for job_id in late:
            self._deliveries.set(job_id, now)
        return len(late)

    async def newest(self, until: Millis) -> Millis | None:
        moments = (
            moment
            for job in self._jobs.values()
            for moment in (job.created_at, job.taken_at, job.finished_at)
            if moment is not None and moment <= until
        )
        return max(moments, default=None)

    async def served_models(self) -> Mapping[EndpointId, Sequence[Model]]:
        return dict(self._served)

    async def set_served_models(self, endpoint: EndpointId, models: Sequence[Model]) -> None:
        self._served[endpoint] = tuple(models)

    async def tried(self, delivery: Delivery, again_at: Millis | None) -> None:
        job_id = delivery.job.id
        job = self._jobs.get(job_id)
        if job is None or self._tries.get(job_id) != delivery.tries:
            return
        if (job.attempt, job.retry_count) != (delivery.job.attempt, delivery.job.retry_count):
            return
        self._deliveries.set(job_id, again_at)
        if again_at is None:
            del self._tries[job_id]
            self._keep(job)
        else:
            self._tries[job_id] += 1

    async def adopt(self, job_id: JobId, attempt: int, run: int, now: Millis) -> Adopted | None:
        job = self._jobs.get(job_id)
        is_running = job is not None and job.status is TRANSITIONS[Event.TAKE].target
        if job is None or job.taken_at is None or job.attempt != attempt or not is_running:
            return None
        job = self._keep(replace(job, run=run, taken_at=min(job.taken_at, now)))
        self._index.watch(job)
        return Adopted(job.outline(), self._logs.end(job_id))

    async def append(
        self, job_id: JobId, run: int, outputs: Sequence[bytes], start: int | None = None
    ) -> int | None:
        job = self._jobs.get(job_id)
        if job is None or job.run != run:
            return None
        if job.status is not TRANSITIONS[Event.TAKE].target:
            return None
        return self._logs.append(job_id, outputs, start)

    async def rewrite(self, job_id: JobId, run: int, start: int, outputs: Sequence[bytes]) -> bool:
        job = self._jobs.get(job_id)
        if job is None or job.run != run or job.delivered:
            return False
        if job.status is not TRANSITIONS[Event.TAKE].target:
            return False
        self._logs.rewrite(job_id, start, outputs)
        return True

    async def read(self, job_id: JobId, cursor: int, limit: int) -> tuple[Sequence[bytes], int]:
        part = self._logs.outputs(job_id, cursor, limit)
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
        job = self._owned(endpoint, owner, job_id)
        if job is None:
            return None
        start = job.consumed_cursor if cursor is None else cursor
        rest = self._logs.outputs(job_id, start, limit)
        part, needed = first_outputs(((output, len(output)) for output in rest), max_bytes)
        return LogPage(job.outline(), part, start + len(part), needed)

    async def result(
        self,
        endpoint: EndpointId,
        owner: Owner,
        job_id: JobId,
        *,
        max_bytes: int,
        cursor: int | None = None,
    ) -> StoredResult | None:
        job = self._owned(endpoint, owner, job_id)
        if job is None:
            return None
        outline = job.outline()
        if not job.is_terminal:
            return StoredResult(outline, (), 0)
        if cursor is None and job.output is not None:
            size = len(job.output)
            fits = size <= max_bytes
            return StoredResult(replace(outline, output=job.output) if fits else outline, (), size)
        outputs = self._logs.outputs(job_id, cursor or 0)
        size = sum(map(len, outputs))
        return StoredResult(outline, outputs if size <= max_bytes else (), size)

    async def consume(self, job_id: JobId, attempt: int, cursor: int) -> bool:
        job = self._jobs.get(job_id)
        if job is None or job.attempt != attempt or job.status is Status.IN_QUEUE:
            return False
        consumed = max(cursor, job.consumed_cursor)
        self._jobs[job_id] = replace(job, consumed_cursor=consumed, delivered=True)
        return True

    async def deliver(self, job_id: JobId, attempt: int) -> bool:
        return await self.consume(job_id, attempt, 0)

    async def counts(self, endpoint: EndpointId) -> Counts:
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

    def _owned(self, endpoint: EndpointId, owner: Owner, job_id: JobId) -> Job | None:
        job = self._jobs.get(job_id)
        if job is None or job.endpoint != endpoint or job.submission.owner != owner:
            return None
        return job

    def _retry(self, job: Job, now: Millis) -> Job:
        self._logs.drop(job.id)
        self._deliveries.set(job.id, None)
        self._tries.pop(job.id, None)
        return self._note(changes.retried(job, now, self._index.next_sequence()))

    def _note(self, job: Job) -> Job:
        self._index.note(job)
        return self._keep(job)

    def _drop(self, job_id: JobId) -> None:
        job = self._jobs.pop(job_id)
        self._bytes -= _size_bytes(job)
        if job.submission.key is not None:
            del self._keyed[_key_of(job.submission)]
        self._logs.drop(job_id)
        self._retentions.set(job_id, None)

    def _keep(self, job: Job) -> Job:
        before = self._jobs.get(job.id)
        self._bytes += _size_bytes(job) - (_size_bytes(before) if before is not None else 0)
        self._jobs[job.id] = job
        forgotten_at = None
        if job.finished_at is not None and job.id not in self._tries:
            forgotten_at = Millis(job.finished_at + job.submission.retention)
        self._retentions.set(job.id, forgotten_at)
        return job


def _size_bytes(job: Job) -> int:
    """Return the size of a job that counts towards `JOBS_MAX_BYTES`."""
    return JOB_OVERHEAD_BYTES + len(job.submission.work.body) + len(job.output or b"")


def _key_of(submission: Submission) -> tuple[EndpointId, Owner, str]:
    """Return the key in its scope; the name is empty if the submission has none."""
    name = "" if submission.key is None else submission.key.name
    return submission.endpoint, submission.owner, name
