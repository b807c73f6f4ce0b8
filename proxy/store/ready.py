"""The ready index: who is next. In memory, and rebuilt at start by a store that outlives its process."""

from bisect import bisect_left, insort

from proxy.jobs.model import Job, JobId

Place = tuple[bool, int, JobId]
"""Where a job stands: normal before low priority, then by sequence. The id is only along for the ride."""


def place(job: Job) -> Place:
    """Where this job stands among those that wait for the same kind of credit."""
    return (job.submission.low_priority, job.sequence, job.id)


class ReadyIndex:
    """The queued jobs of one endpoint that wait for the same kind of credit, in the order in which they leave.

    A sorted list: jobs come at the end and leave at the front, and both of these are cheap up to some 100,000 jobs.
    """

    def __init__(self) -> None:
        self._places: list[Place] = []

    def __len__(self) -> int:
        return len(self._places)

    def add(self, job: Job) -> None:
        """Put a job in its place."""
        insort(self._places, place(job))

    def remove(self, job: Job) -> None:
        """Take a job out, wherever it stands."""
        index = self.ahead(job)
        if index < len(self._places) and self._places[index][2] == job.id:
            del self._places[index]

    def pop(self, limit: int) -> list[JobId]:
        """Take out the first `limit`."""
        taken = [job_id for _, _, job_id in self._places[:limit]]
        del self._places[:limit]
        return taken

    def ahead(self, job: Job) -> int:
        """How many stand before this job."""
        return bisect_left(self._places, place(job))
