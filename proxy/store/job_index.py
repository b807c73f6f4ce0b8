"""The indexes of jobs in the memory of one process: queues, deadlines and counts.

Their content is derived from the jobs. Each new state of a job must be recorded here, in the order
of the events; a persistent store loads its jobs when it is opened.
"""

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from heapq import heapify, heappop, heappush

from proxy.jobs.lifecycle import TERMINAL, Event, Status
from proxy.jobs.model import Counts, EndpointId, JobId, JobState, Millis, Owner
from proxy.jobs.policy import deadline, status_before
from proxy.store.queue_key import PlainKey, QueueKey
from proxy.store.ready_index import ReadyIndex, queue_key

# A constant of the module: the member of an enum takes longer to look up.
IN_QUEUE = Status.IN_QUEUE
# The fields of `Counts` by status.
UNFINISHED_FIELDS = {status: status.lower() for status in Status if status not in TERMINAL}
TERMINAL_FIELDS = {status: status.lower() for status in TERMINAL}

# The range of deadlines that share one bucket.
BUCKET_MILLIS = 1024

# Minimum number of empty buckets before they are removed. Without a removal, a day of traffic would
# leave one for each second.
EMPTY_BUCKETS_MIN = 64


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


class DeadlineIndex:
    """Holds at most one deadline for each job, and returns those that have passed.

    Most deadlines never occur, because jobs end long before. A heap would keep each entry until its
    time: with default settings, five minutes of traffic. This index removes a changed or cancelled
    deadline immediately.
    """

    def __init__(self) -> None:
        self._moments: dict[JobId, Millis] = {}
        # Dicts instead of sets, which need twice the memory.
        self._buckets: dict[int, dict[JobId, None]] = {}
        # A heap of the bucket numbers.
        self._order: list[int] = []
        self._empty_buckets = 0

    def __len__(self) -> int:
        return len(self._moments)

    def __contains__(self, job_id: JobId) -> bool:
        return job_id in self._moments

    def set(self, job_id: JobId, moment: Millis | None) -> None:
        """Set the deadline of a job, or remove it (None)."""
        before = self._moments.pop(job_id, None)
        if before is not None:
            self._remove(before // BUCKET_MILLIS, job_id)
        if moment is not None:
            self._moments[job_id] = moment
            number = moment // BUCKET_MILLIS
            bucket = self._buckets.get(number)
            if bucket is None:
                bucket = self._buckets[number] = {}
                heappush(self._order, number)
            elif not bucket:
                self._empty_buckets -= 1
            bucket[job_id] = None

    def due(self, now: Millis, limit: int) -> list[JobId]:
        """Return up to `limit` jobs with a deadline of `now` or earlier, earliest first.

        They remain in the index.
        """
        found: list[JobId] = []
        visited: list[int] = []
        while self._order and self._order[0] * BUCKET_MILLIS <= now and len(found) < limit:
            number = heappop(self._order)
            if not self._buckets[number]:
                del self._buckets[number]
                self._empty_buckets -= 1
                continue
            visited.append(number)
            passed = [job_id for job_id in self._buckets[number] if self._moments[job_id] <= now]
            found += sorted(passed, key=lambda job_id: (self._moments[job_id], job_id))
        for number in visited:
            heappush(self._order, number)
        return found[:limit]

    def _remove(self, number: int, job_id: JobId) -> None:
        bucket = self._buckets[number]
        bucket.pop(job_id, None)
        if bucket:
            return
        self._empty_buckets += 1
        # Half of the buckets: the cost of a removal is then small for each deadline.
        if self._empty_buckets > max(EMPTY_BUCKETS_MIN, len(self._buckets) // 2):
            self._buckets = {key: jobs for key, jobs in self._buckets.items() if jobs}
            self._order = list(self._buckets)
            heapify(self._order)
            self._empty_buckets = 0


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
