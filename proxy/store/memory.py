"""A job store in memory. Nothing outlives the process; it is the oracle that the other stores are compared with."""

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import replace

from proxy.jobs.lifecycle import TERMINAL, TRANSITIONS, Event, Status, advance
from proxy.jobs.model import Counts, Delivery, EndpointId, Job, JobError, JobId, Millis, Owner, Submission, WorkerId
from proxy.jobs.policy import deadline
from proxy.store.agenda import Agenda
from proxy.store.ready import ReadyIndex


class MemoryStore:
    """`JobStore` over dictionaries. No method awaits anything, so each is one step of the event loop: whole or not."""

    durable = False

    def __init__(self) -> None:
        self._jobs: dict[JobId, Job] = {}
        self._outputs: dict[JobId, list[bytes]] = {}
        self._ready: defaultdict[tuple[EndpointId, bool], ReadyIndex] = defaultdict(ReadyIndex)
        self._deadlines = Agenda()
        self._retentions = Agenda()
        self._deliveries = Agenda()
        self._tries: dict[JobId, int] = {}
        self._standing: Counter[tuple[EndpointId, Status]] = Counter()
        self._ended: Counter[tuple[EndpointId, Status | Event]] = Counter()
        self._sequence = 0

    async def submit(self, submission: Submission, now: Millis) -> Job:
        if (known := self._jobs.get(submission.id)) is not None:
            return known
        job = Job(submission, sequence=self._next_sequence(), status=Status.IN_QUEUE, created_at=now)
        self._standing[job.endpoint, job.status] += 1
        self._index(job).add(job)
        self._keep(job)
        return job

    async def get(self, endpoint: EndpointId, owner: Owner, job_id: JobId) -> Job | None:
        job = self._jobs.get(job_id)
        if job is None or job.endpoint != endpoint or job.submission.owner != owner:
            return None
        return job

    async def find(self, job_id: JobId) -> Job | None:
        return self._jobs.get(job_id)

    async def recent(
        self, endpoint: EndpointId, owner: Owner, *, before: int | None, limit: int, status: Status | None = None
    ) -> Sequence[Job]:
        found = [
            job
            for job in self._jobs.values()
            if job.endpoint == endpoint
            and job.submission.owner == owner
            and (before is None or job.sequence < before)
            and (status is None or job.status is status)
        ]
        return sorted(found, key=lambda job: -job.sequence)[:limit]

    async def take(
        self, endpoint: EndpointId, worker: WorkerId, *, limit: int, light_limit: int, now: Millis
    ) -> Sequence[Job]:
        taken = self._ready[endpoint, False].pop(limit, now) + self._ready[endpoint, True].pop(light_limit, now)
        return [self._take(self._jobs[job_id], worker, now) for job_id in taken]

    async def settle(
        self,
        job_id: JobId,
        event: Event,
        *,
        now: Millis,
        attempt: int | None = None,
        error: JobError | None = None,
        counts: bool = False,
        output: bytes | None = None,
    ) -> Job | None:
        job = self._jobs.get(job_id)
        if job is None or (attempt is not None and attempt != job.attempt):
            return None
        target = advance(job.status, event)
        if target is None or event is Event.TAKE:
            return None
        if event is Event.RETRY:
            return self._retry(job, now)
        if event is Event.RELEASE:
            changed = replace(job, status=target, worker=None, taken_at=None, failures=job.failures + counts)
        else:
            changed = replace(self._without_body(job), status=target, finished_at=now, error=error, output=output)
            if job.submission.durable and job.submission.webhook is not None:
                self._deliveries.set(job_id, now)
                self._tries[job_id] = 0
        return self._move(job, replace(changed, last_event=event))

    async def purge(self, endpoint: EndpointId, owner: Owner, now: Millis, error: JobError) -> Sequence[Job]:
        waiting = [job_id for light in (False, True) for job_id in self._ready[endpoint, light].pop_owned(owner)]
        purged = [await self.settle(job_id, Event.CANCEL, now=now, error=error) for job_id in waiting]
        return [job for job in purged if job is not None]

    async def due(self, now: Millis, limit: int) -> Sequence[Job]:
        return [self._jobs[job_id] for job_id in self._deadlines.due(now, limit)]

    async def forget(self, now: Millis, limit: int) -> int:
        ended = [job_id for job_id in self._retentions.due(now, limit) if job_id not in self._tries]
        for job_id in ended:
            del self._jobs[job_id]
            self._outputs.pop(job_id, None)
            self._retentions.set(job_id, None)
        return len(ended)

    async def limit_life(self, job_id: JobId, moment: Millis) -> Job | None:
        job = self._jobs.get(job_id)
        if job is None or not job.submission.durable:
            return None
        if job.finished_at is None:
            changed = replace(job.submission, expires_at=moment)
        else:
            changed = replace(job.submission, retention=Millis(moment - job.finished_at))
        after = replace(job, submission=changed)
        self._keep(after)
        return after

    async def deliveries(self, now: Millis, limit: int) -> Sequence[Delivery]:
        return [Delivery(self._jobs[job_id], self._tries[job_id]) for job_id in self._deliveries.due(now, limit)]

    async def tried(self, delivery: Delivery, again_at: Millis | None) -> None:
        job_id = delivery.job.id
        job = self._jobs.get(job_id)
        if job is None or job.attempt != delivery.job.attempt or self._tries.get(job_id) != delivery.tries:
            return
        self._deliveries.set(job_id, again_at)
        if again_at is None:
            del self._tries[job_id]
        else:
            self._tries[job_id] += 1

    async def append(self, job_id: JobId, attempt: int, outputs: Sequence[bytes]) -> int | None:
        job = self._jobs.get(job_id)
        if job is None or job.attempt != attempt or job.status is not TRANSITIONS[Event.TAKE].target:
            return None
        log = self._outputs.setdefault(job_id, [])
        log.extend(outputs)
        return len(log)

    async def read(self, job_id: JobId, cursor: int, limit: int) -> tuple[Sequence[bytes], int]:
        part = self._outputs.get(job_id, [])[cursor : cursor + limit]
        return part, cursor + len(part)

    async def drain(self, job_id: JobId, attempt: int, cursor: int) -> None:
        job = self._jobs.get(job_id)
        if job is not None and job.attempt == attempt and job.drained < cursor:
            self._jobs[job_id] = replace(job, drained=cursor)

    async def counts(self, endpoint: EndpointId) -> Counts:
        standing = {status: self._standing[endpoint, status] for status in Status if status not in TERMINAL}
        ended = {status: self._ended[endpoint, status] for status in TERMINAL}
        named = {status.lower(): number for status, number in (standing | ended).items()}
        return Counts(**named, retried=self._ended[endpoint, Event.RETRY])

    def ahead(self, job: Job) -> int:
        return self._index(job).ahead(job)

    def _next_sequence(self) -> int:
        self._sequence += 1
        return self._sequence

    def _index(self, job: Job) -> ReadyIndex:
        return self._ready[job.endpoint, job.submission.light]

    def _take(self, job: Job, worker: WorkerId, now: Millis) -> Job:
        self._outputs.pop(job.id, None)  # the log is the current attempt's
        target = TRANSITIONS[Event.TAKE].target
        return self._move(
            job,
            replace(job, status=target, attempt=job.attempt + 1, worker=worker, taken_at=now, drained=0,
                    last_event=Event.TAKE),
        )  # fmt: skip

    def _retry(self, job: Job, now: Millis) -> Job | None:
        if not job.submission.durable:
            return None
        self._outputs.pop(job.id, None)
        self._deliveries.set(job.id, None)
        self._tries.pop(job.id, None)
        again = _postponed(job.submission, Millis(now - job.created_at))
        fresh = Job(again, self._next_sequence(), TRANSITIONS[Event.RETRY].target, created_at=now, attempt=job.attempt)
        self._ended[job.endpoint, Event.RETRY] += 1
        return self._move(job, replace(fresh, retries=job.retries + 1, last_event=Event.RETRY))

    def _without_body(self, job: Job) -> Job:
        if job.submission.durable:
            return job
        return replace(job, submission=replace(job.submission, work=replace(job.submission.work, body=b"")))

    def _move(self, before: Job, after: Job) -> Job:
        """Write the new version of a job, and with it all that is derived from its status."""
        was_queued = before.status is Status.IN_QUEUE
        if was_queued and after.last_event is not Event.TAKE:
            self._index(before).remove(before)
        if after.status is Status.IN_QUEUE:
            self._index(after).add(after)
        if not before.is_terminal:
            self._standing[before.endpoint, before.status] -= 1
        if after.is_terminal:
            self._ended[after.endpoint, after.status] += 1
        else:
            self._standing[after.endpoint, after.status] += 1
        self._keep(after)
        return after

    def _keep(self, job: Job) -> None:
        self._jobs[job.id] = job
        self._deadlines.set(job.id, deadline(job))
        ended = job.finished_at
        self._retentions.set(job.id, None if ended is None else Millis(ended + job.submission.retention))


def _postponed(submission: Submission, by: Millis) -> Submission:
    """The submission with its deadlines counted anew."""
    queued, expires = submission.queued_until, submission.expires_at
    return replace(
        submission,
        queued_until=None if queued is None else Millis(queued + by),
        expires_at=None if expires is None else Millis(expires + by),
    )
