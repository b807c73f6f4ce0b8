"""The index of queued jobs, in queue order.

It is in memory; a persistent store rebuilds it when it is opened.
"""

from bisect import bisect_left, insort
from collections.abc import Callable
from typing import NamedTuple

from proxy.jobs.model import Job, JobId, Millis, Owner
from proxy.jobs.policy import LOW_PRIORITY_WAIT_MILLIS


class QueueKey(NamedTuple):
    """The sort key of a queued job: the sequence. The other fields do not affect the order."""

    sequence: int
    job_id: JobId
    owner: Owner
    created_at: Millis
    light: bool
    low_priority: bool
    durable: bool


def queue_key(job: Job) -> QueueKey:
    """Return the key of a job among the jobs of its priority that need the same kind of credit."""
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
    """The queued jobs of one endpoint that need the same kind of credit, in queue order.

    Two sorted lists hold the jobs of normal and of low priority. Jobs are added at the end and
    removed at the front; both are fast for up to about 100,000 jobs. A job of low priority that has
    waited for `LOW_PRIORITY_WAIT_MILLIS` moves to its position in the first list.
    """

    def __init__(self) -> None:
        self._normal: list[QueueKey] = []
        self._low: list[QueueKey] = []

    def __len__(self) -> int:
        return len(self._normal) + len(self._low)

    def add(self, one: QueueKey) -> None:
        """Insert a job at its position."""
        insort(self._low if one.low_priority else self._normal, one)

    def remove(self, job: Job) -> None:
        """Remove a job from any position."""
        for places in (self._normal, self._low):
            index = bisect_left(places, (job.sequence,))
            if index < len(places) and places[index].job_id == job.id:
                del places[index]

    def pop(self, limit: int, now: Millis) -> list[QueueKey]:
        """Remove and return the first `limit` jobs."""
        self._promote(now)
        taken = self._normal[:limit]
        del self._normal[:limit]
        rest = limit - len(taken)
        taken += self._low[:rest]
        del self._low[:rest]
        return taken

    def pop_interactive(self, limit: int, now: Millis) -> list[QueueKey]:
        """Remove and return the first `limit` jobs that are not durable."""
        self._promote(now)
        return self._pop_where(lambda one: not one.durable, limit)

    def pop_owned(self, owner: Owner) -> list[QueueKey]:
        """Remove and return all jobs of one owner."""
        return self._pop_where(lambda one: one.owner == owner)

    def ahead(self, job: Job) -> int:
        """Return the number of jobs before this one."""
        index = bisect_left(self._normal, (job.sequence,))
        is_here = index < len(self._normal) and self._normal[index].job_id == job.id
        if is_here or not job.submission.low_priority:
            return index
        return len(self._normal) + bisect_left(self._low, (job.sequence,))

    def _pop_where(
        self, wanted: Callable[[QueueKey], bool], limit: int | None = None
    ) -> list[QueueKey]:
        taken = [one for one in self._normal + self._low if wanted(one)][:limit]
        gone = {one.sequence for one in taken}
        self._normal = [one for one in self._normal if one.sequence not in gone]
        self._low = [one for one in self._low if one.sequence not in gone]
        return taken

    def _promote(self, now: Millis) -> None:
        count = 0
        while (
            count < len(self._low) and self._low[count].created_at + LOW_PRIORITY_WAIT_MILLIS <= now
        ):
            insort(self._normal, self._low[count])
            count += 1
        del self._low[:count]
