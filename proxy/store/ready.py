"""The ready index: who is next. In memory, and rebuilt at start by a store that outlives its process."""

from bisect import bisect_left, insort
from typing import NamedTuple

from proxy.jobs.model import Job, JobId, Millis, Owner
from proxy.jobs.policy import LOW_WAITS


class Place(NamedTuple):
    """Where a job stands: by sequence. The rest is only along for the ride."""

    sequence: int
    job_id: JobId
    owner: Owner
    created_at: Millis


def place(job: Job) -> Place:
    """Where this job stands among those of its priority that wait for the same kind of credit."""
    return Place(job.sequence, job.id, job.submission.owner, job.created_at)


class ReadyIndex:
    """The queued jobs of one endpoint that wait for the same kind of credit, in the order in which they leave.

    Two sorted lists, normal and low priority: jobs come at the end and leave at the front, and both of these are cheap
    up to some 100,000 jobs. What has waited long enough in the second moves to its place in the first.
    """

    def __init__(self) -> None:
        self._normal: list[Place] = []
        self._low: list[Place] = []

    def __len__(self) -> int:
        return len(self._normal) + len(self._low)

    def add(self, job: Job) -> None:
        """Put a job in its place."""
        insort(self._low if job.submission.low_priority else self._normal, place(job))

    def remove(self, job: Job) -> None:
        """Take a job out, wherever it stands."""
        for places in (self._normal, self._low):
            index = bisect_left(places, (job.sequence,))
            if index < len(places) and places[index].job_id == job.id:
                del places[index]

    def first(self, limit: int, now: Millis) -> list[Place]:
        """The first `limit`; they stay."""
        self._promote(now)
        found = self._normal[:limit]
        return found + self._low[: limit - len(found)]

    def pop(self, limit: int, now: Millis) -> list[JobId]:
        """Take out the first `limit`."""
        taken = self.first(limit, now)
        normal = min(limit, len(self._normal))
        del self._normal[:normal]
        del self._low[: len(taken) - normal]
        return [one.job_id for one in taken]

    def pop_owned(self, owner: Owner) -> list[JobId]:
        """Take out all of one owner."""
        taken = [one.job_id for places in (self._normal, self._low) for one in places if one.owner == owner]
        self._normal = [one for one in self._normal if one.owner != owner]
        self._low = [one for one in self._low if one.owner != owner]
        return taken

    def ahead(self, job: Job) -> int:
        """How many stand before this job."""
        index = bisect_left(self._normal, (job.sequence,))
        is_here = index < len(self._normal) and self._normal[index].job_id == job.id
        if is_here or not job.submission.low_priority:
            return index
        return len(self._normal) + bisect_left(self._low, (job.sequence,))

    def _promote(self, now: Millis) -> None:
        count = 0
        while count < len(self._low) and self._low[count].created_at + LOW_WAITS <= now:
            insort(self._normal, self._low[count])
            count += 1
        del self._low[:count]
