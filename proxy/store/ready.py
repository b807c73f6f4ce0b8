"""The ready index: who is next. In memory, and rebuilt at start by a store that outlives its process."""

from bisect import bisect_left, insort
from collections.abc import Callable
from typing import NamedTuple

from proxy.jobs.model import Job, JobId, Millis, Owner
from proxy.jobs.policy import LOW_WAITS


class QueueKey(NamedTuple):
    """Where a job stands: by sequence. The rest is only along for the ride."""

    sequence: int
    job_id: JobId
    owner: Owner
    created_at: Millis
    light: bool
    low_priority: bool
    durable: bool


def queue_key(job: Job) -> QueueKey:
    """Where this job stands among those of its priority that wait for the same kind of credit."""
    wanted = job.submission
    return QueueKey(
        job.sequence,
        job.id,
        wanted.owner,
        job.created_at,
        wanted.light,
        wanted.low_priority,
        wanted.durable,
    )


class ReadyIndex:
    """The queued jobs of one endpoint that wait for the same kind of credit, in the order in which they leave.

    Two sorted lists, normal and low priority: jobs come at the end and leave at the front, and both of these are cheap
    up to some 100,000 jobs. What has waited long enough in the second moves to its place in the first.
    """

    def __init__(self) -> None:
        self._normal: list[QueueKey] = []
        self._low: list[QueueKey] = []

    def __len__(self) -> int:
        return len(self._normal) + len(self._low)

    def add(self, one: QueueKey) -> None:
        """Let a job stand in its place."""
        insort(self._low if one.low_priority else self._normal, one)

    def remove(self, job: Job) -> None:
        """Take a job out, wherever it stands."""
        for places in (self._normal, self._low):
            index = bisect_left(places, (job.sequence,))
            if index < len(places) and places[index].job_id == job.id:
                del places[index]

    def pop(self, limit: int, now: Millis) -> list[QueueKey]:
        """Take out the first `limit`."""
        self._promote(now)
        taken = self._normal[:limit]
        del self._normal[:limit]
        rest = limit - len(taken)
        taken += self._low[:rest]
        del self._low[:rest]
        return taken

    def pop_interactive(self, limit: int, now: Millis) -> list[QueueKey]:
        """Take out the first `limit` that are not durable."""
        self._promote(now)
        return self._pop_where(lambda one: not one.durable, limit)

    def pop_owned(self, owner: Owner) -> list[QueueKey]:
        """Take out all of one owner."""
        return self._pop_where(lambda one: one.owner == owner)

    def ahead(self, job: Job) -> int:
        """How many stand before this job."""
        index = bisect_left(self._normal, (job.sequence,))
        is_here = index < len(self._normal) and self._normal[index].job_id == job.id
        if is_here or not job.submission.low_priority:
            return index
        return len(self._normal) + bisect_left(self._low, (job.sequence,))

    def _pop_where(
        self, wanted: Callable[[QueueKey], bool], limit: int | None = None
    ) -> list[QueueKey]:
        taken = [one for places in (self._normal, self._low) for one in places if wanted(one)][
            :limit
        ]
        gone = {one.sequence for one in taken}
        self._normal = [one for one in self._normal if one.sequence not in gone]
        self._low = [one for one in self._low if one.sequence not in gone]
        return taken

    def _promote(self, now: Millis) -> None:
        count = 0
        while count < len(self._low) and self._low[count].created_at + LOW_WAITS <= now:
            insort(self._normal, self._low[count])
            count += 1
        del self._low[:count]
