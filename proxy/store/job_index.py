"""The indexes of jobs in the memory of one process: queues, deadlines and counts.

Their content is derived from the jobs. Each new state of a job must be recorded here, in the order
of the events; a persistent store loads its jobs when it is opened.
"""

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping

from proxy.jobs.lifecycle import TERMINAL, Event, Status
from proxy.jobs.model import Counts, EndpointId, JobId, JobState, Millis, Owner
from proxy.jobs.policy import deadline, status_before
from proxy.store.deadline_index import DeadlineIndex
from proxy.store.queue_key import PlainKey, QueueKey
from proxy.store.ready_index import ReadyIndex, queue_key

# A constant of the module: the member of an enum takes longer to look up.
IN_QUEUE = Status.IN_QUEUE
# The fields of `Counts` by status.
UNFINISHED_FIELDS = {status: status.lower() for status in Status if status not in TERMINAL}
TERMINAL_FIELDS = {status: status.lower() for status in TERMINAL}


class QueueIndex:
    """The queues of all endpoints, and counts of all jobs."""

    def __init__(self) -> None:
        self._ready: defaultdict[tuple[EndpointId, bool], ReadyIndex] = defaultdict(ReadyIndex)
        self._unfinished: Counter[tuple[EndpointId, Status]] = Counter()
        self._ended: Counter[tuple[EndpointId, str]] = Counter()
        self._sequence = 0

    def next_sequence(self) -> int:
        """Return the next sequence; all jobs share one series."""
        self._sequence += 1
        return self._sequence

    def note(self, job: JobState) -> None:
        """Record a job that has just been submitted, or whose last event has just occurred."""
        endpoint = job.endpoint
        status = job.status
        before = status_before(job)
        if before is IN_QUEUE and job.last_event is not Event.TAKE:
            self._queue(job).remove(job)
        if status is IN_QUEUE:
            self._queue(job).add(queue_key(job))
        if before is not None:
            self._unfinished[endpoint, before] -= 1
        if status in TERMINAL:
            self._ended[endpoint, status] += 1
            return
        self._unfinished[endpoint, status] += 1
        if job.last_event is Event.RETRY:
            self._ended[endpoint, Event.RETRY] += 1

    def note_taken(self, job: JobState) -> None:
        """Record a new job that was taken without having been queued."""
        self._unfinished[job.endpoint, job.status] += 1

    def pop(self, endpoint: EndpointId, limit: int, now: Millis, *, light: bool) -> list[QueueKey]:
        """Remove the first jobs from the queue and return their keys.

        The caller takes the jobs and records that with `note`, or returns them with `put_back`.
        """
        return self._ready[endpoint, light].pop(limit, now)

    def pop_owned(
        self, endpoint: EndpointId, owner: Owner, before: int, limit: int
    ) -> list[QueueKey]:
        """Like `pop`, for `limit` jobs of one owner that have a sequence below `before`."""
        taken: list[QueueKey] = []
        for light in (False, True):
            taken += self._ready[endpoint, light].pop_owned(owner, before, limit - len(taken))
        return taken

    def put_back(self, endpoint: EndpointId, places: Iterable[QueueKey]) -> None:
        """Return popped keys to the queue."""
        for one in places:
            self._ready[endpoint, one.light].add(one)

    def counts(self, endpoint: EndpointId) -> Counts:
        """Return the number of jobs by status."""
        named = {
            name: self._unfinished[endpoint, status] for status, name in UNFINISHED_FIELDS.items()
        }
        named |= {name: self._ended[endpoint, status] for status, name in TERMINAL_FIELDS.items()}
        return Counts(**named, retried=self._ended[endpoint, Event.RETRY])

    def ahead(self, job: JobState) -> int:
        """Return the number of queued jobs before this one."""
        return self._queue(job).ahead(job)

    def first(self, endpoint: EndpointId, limit: int, *, light: bool) -> list[QueueKey]:
        """Return the keys of the first jobs of normal priority."""
        return self._ready[endpoint, light].first(limit)

    def all_queued(self, endpoint: EndpointId) -> int:
        """Return the number of queued jobs that need credit of either kind."""
        return self._unfinished[endpoint, IN_QUEUE]

    def queued(self, endpoint: EndpointId, *, light: bool, before: int | None = None) -> int:
        """Return the number of queued jobs, or of those of normal priority before a sequence."""
        queue = self._ready[endpoint, light]
        return len(queue) if before is None else queue.before(before)

    def _queue(self, job: JobState) -> ReadyIndex:
        return self._ready[job.endpoint, job.submission.light]


class JobIndex(QueueIndex):
    """The queues and counts, and the deadlines of unfinished jobs."""

    def __init__(self) -> None:
        super().__init__()
        self._deadlines = DeadlineIndex()

    def note(self, job: JobState) -> None:
        super().note(job)
        self.watch(job)

    def watch(self, job: JobState) -> None:
        """Update the deadline of a job after a change."""
        self._deadlines.set(job.id, deadline(job))

    def load(
        self,
        queued: Iterable[tuple[EndpointId, Millis | None, PlainKey]],
        running: Iterable[JobState],
        ended: Mapping[tuple[EndpointId, str], int],
        sequence: int,
    ) -> None:
        """Initialize the indexes from queued jobs, each with its endpoint and deadline, running
        jobs, counts of ended jobs and a last sequence.
        """
        for endpoint, moment, key in queued:
            _, job_id, _, _, light, _ = key
            self._ready[endpoint, light].add(key)
            self._deadlines.set(job_id, moment)
        for (endpoint, _), queue in self._ready.items():
            self._unfinished[endpoint, IN_QUEUE] += len(queue)
        for job in running:
            self._unfinished[job.endpoint, job.status] += 1
            self.watch(job)
        self._ended.update(ended)
        self._sequence = sequence

    def is_unfinished(self, job_id: JobId) -> bool:
        """Return True if the job has a deadline, so that it has certainly not ended."""
        return job_id in self._deadlines

    def due(self, now: Millis, limit: int) -> list[JobId]:
        """Return unfinished jobs with a deadline of `now` or earlier, earliest first."""
        return self._deadlines.due(now, limit)
