"""What a store in one process keeps in mind of its jobs: who is next, whose time is up, how many stand where.

All of it follows from the jobs. Whoever makes a new version of a job lets it be noted here, in the order of the events;
a store that outlives its process loads what it has at the start.
"""

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping

from proxy.jobs.lifecycle import TERMINAL, Event, Status
from proxy.jobs.model import Counts, EndpointId, Job, JobId, Millis, Owner
from proxy.jobs.policy import deadline
from proxy.store.deadlines import DeadlineIndex
from proxy.store.ready import QueueKey, ReadyIndex, queue_key

STANDING = {status: status.lower() for status in Status if status not in TERMINAL}
ENDED = {status: status.lower() for status in TERMINAL}


class JobIndex:
    """The indexes over all unfinished jobs, durable or not, and the counts."""

    def __init__(self) -> None:
        self._ready: defaultdict[tuple[EndpointId, bool], ReadyIndex] = defaultdict(ReadyIndex)
        self._deadlines = DeadlineIndex()
        self._standing: Counter[tuple[EndpointId, Status]] = Counter()
        self._ended: Counter[tuple[EndpointId, str]] = Counter()
        self._sequence = 0

    def next_sequence(self) -> int:
        """The next place in line: one line for all jobs."""
        self._sequence += 1
        return self._sequence

    def note(self, job: Job) -> None:
        """A job was submitted, or its last event has just happened."""
        before = _status_before(job)
        if before is Status.IN_QUEUE and job.last_event is not Event.TAKE:
            self._line(job).remove(job)
        if job.status is Status.IN_QUEUE:
            self._line(job).add(queue_key(job))
        if before is not None:
            self._standing[job.endpoint, before] -= 1
        if job.is_terminal:
            self._ended[job.endpoint, job.status] += 1
        else:
            self._standing[job.endpoint, job.status] += 1
        if job.last_event is Event.RETRY:
            self._ended[job.endpoint, job.last_event] += 1
        self.watch(job)

    def watch(self, job: Job) -> None:
        """A job's deadline may be another one now."""
        self._deadlines.set(job.id, deadline(job))

    def load(
        self, unfinished: Iterable[Job], ended: Mapping[tuple[EndpointId, str], int], sequence: int
    ) -> None:
        """Begin with these."""
        for job in unfinished:
            if job.status is Status.IN_QUEUE:
                self._line(job).add(queue_key(job))
            self._standing[job.endpoint, job.status] += 1
            self.watch(job)
        self._ended.update(ended)
        self._sequence = sequence

    def pop(self, endpoint: EndpointId, limit: int, now: Millis, *, light: bool) -> list[QueueKey]:
        """Who leaves the queue now: out of it at once, so that nobody else gets them. `note` their take."""
        return self._ready[endpoint, light].pop(limit, now)

    def pop_interactive(
        self, endpoint: EndpointId, limit: int, now: Millis, *, light: bool
    ) -> list[QueueKey]:
        """As `pop`, as if there were no durable jobs."""
        return self._ready[endpoint, light].pop_interactive(limit, now)

    def pop_owned(self, endpoint: EndpointId, owner: Owner, *, light: bool) -> list[QueueKey]:
        """As `pop`, all of one owner."""
        return self._ready[endpoint, light].pop_owned(owner)

    def put_back(self, endpoint: EndpointId, places: Iterable[QueueKey]) -> None:
        """They have not left the queue after all."""
        for one in places:
            self._ready[endpoint, one.light].add(one)

    def due(self, now: Millis, limit: int) -> list[JobId]:
        """The unfinished jobs whose deadline is not after `now`, earliest first."""
        return self._deadlines.due(now, limit)

    def counts(self, endpoint: EndpointId) -> Counts:
        """How many jobs stand where."""
        named = {name: self._standing[endpoint, status] for status, name in STANDING.items()}
        named |= {name: self._ended[endpoint, status] for status, name in ENDED.items()}
        return Counts(**named, retried=self._ended[endpoint, Event.RETRY])

    def ahead(self, job: Job) -> int:
        """How many queued jobs stand before this one."""
        return self._line(job).ahead(job)

    def _line(self, job: Job) -> ReadyIndex:
        return self._ready[job.endpoint, job.submission.light]


def _status_before(job: Job) -> Status | None:
    """Where an unfinished job stood before its last event; None when it was not there, or had ended."""
    match job.last_event:
        case None | Event.RETRY:
            return None
        case Event.TAKE:
            return Status.IN_QUEUE
        case Event.RELEASE:
            return Status.IN_PROGRESS
        case _:
            return Status.IN_QUEUE if job.taken_at is None else Status.IN_PROGRESS
