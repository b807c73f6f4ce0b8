"""The indexes that a store in one process keeps in memory: queues, deadlines and counts.

Their content is derived from the jobs. Each new version of a job must be recorded here, in the
order of the events; a persistent store loads its jobs when it is opened.
"""

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping

from proxy.jobs.lifecycle import TERMINAL, Event, Status
from proxy.jobs.model import Counts, EndpointId, Job, JobId, Millis, Owner
from proxy.jobs.policy import deadline
from proxy.store.deadlines import DeadlineIndex
from proxy.store.ready import QueueKey, ReadyIndex, queue_key

# The fields of `Counts` by status.
UNFINISHED_FIELDS = {status: status.lower() for status in Status if status not in TERMINAL}
TERMINAL_FIELDS = {status: status.lower() for status in TERMINAL}


class JobIndex:
    """Indexes of all unfinished jobs, and counts of all jobs."""

    def __init__(self) -> None:
        self._ready: defaultdict[tuple[EndpointId, bool], ReadyIndex] = defaultdict(ReadyIndex)
        self._deadlines = DeadlineIndex()
        self._unfinished: Counter[tuple[EndpointId, Status]] = Counter()
        self._ended: Counter[tuple[EndpointId, str]] = Counter()
        self._sequence = 0

    def next_sequence(self) -> int:
        """Return the next sequence; all jobs share one series."""
        self._sequence += 1
        return self._sequence

    def note(self, job: Job) -> None:
        """Record a job that has just been submitted, or whose last event has just occurred."""
        before = _status_before(job)
        if before is Status.IN_QUEUE and job.last_event is not Event.TAKE:
            self._queue(job).remove(job)
        if job.status is Status.IN_QUEUE:
            self._queue(job).add(queue_key(job))
        if before is not None:
            self._unfinished[job.endpoint, before] -= 1
        if job.is_terminal:
            self._ended[job.endpoint, job.status] += 1
        else:
            self._unfinished[job.endpoint, job.status] += 1
        if job.last_event is Event.RETRY:
            self._ended[job.endpoint, job.last_event] += 1
        self.watch(job)

    def watch(self, job: Job) -> None:
        """Update the deadline of a job after a change."""
        self._deadlines.set(job.id, deadline(job))

    def load(
        self, unfinished: Iterable[Job], ended: Mapping[tuple[EndpointId, str], int], sequence: int
    ) -> None:
        """Initialize the indexes from unfinished jobs, counts of ended jobs and a last sequence."""
        for job in unfinished:
            if job.status is Status.IN_QUEUE:
                self._queue(job).add(queue_key(job))
            self._unfinished[job.endpoint, job.status] += 1
            self.watch(job)
        self._ended.update(ended)
        self._sequence = sequence

    def pop(self, endpoint: EndpointId, limit: int, now: Millis, *, light: bool) -> list[QueueKey]:
        """Remove the first jobs from the queue and return their keys.

        The caller takes the jobs and records that with `note`, or returns them with `put_back`.
        """
        return self._ready[endpoint, light].pop(limit, now)

    def pop_interactive(
        self, endpoint: EndpointId, limit: int, now: Millis, *, light: bool
    ) -> list[QueueKey]:
        """Like `pop`, for interactive jobs only."""
        return self._ready[endpoint, light].pop_interactive(limit, now)

    def pop_owned(self, endpoint: EndpointId, owner: Owner, *, light: bool) -> list[QueueKey]:
        """Like `pop`, for all jobs of one owner."""
        return self._ready[endpoint, light].pop_owned(owner)

    def put_back(self, endpoint: EndpointId, places: Iterable[QueueKey]) -> None:
        """Return popped keys to the queue."""
        for one in places:
            self._ready[endpoint, one.light].add(one)

    def due(self, now: Millis, limit: int) -> list[JobId]:
        """Return unfinished jobs with a deadline of `now` or earlier, earliest first."""
        return self._deadlines.due(now, limit)

    def counts(self, endpoint: EndpointId) -> Counts:
        """Return the number of jobs by status."""
        named = {
            name: self._unfinished[endpoint, status] for status, name in UNFINISHED_FIELDS.items()
        }
        named |= {name: self._ended[endpoint, status] for status, name in TERMINAL_FIELDS.items()}
        return Counts(**named, retried=self._ended[endpoint, Event.RETRY])

    def ahead(self, job: Job) -> int:
        """Return the number of queued jobs before this one."""
        return self._queue(job).ahead(job)

    def _queue(self, job: Job) -> ReadyIndex:
        return self._ready[job.endpoint, job.submission.light]


def _status_before(job: Job) -> Status | None:
    """Return the status before the last event; None if the job was new or had ended."""
    match job.last_event:
        case None | Event.RETRY:
            return None
        case Event.TAKE:
            return Status.IN_QUEUE
        case Event.RELEASE:
            return Status.IN_PROGRESS
        case _:
            return Status.IN_QUEUE if job.taken_at is None else Status.IN_PROGRESS
