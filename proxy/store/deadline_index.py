"""The deadlines of jobs in the memory of one process.

Most deadlines never occur, because jobs end long before. A heap would keep each entry until its
time: with default settings, five minutes of traffic. `DeadlineIndex` removes a changed or cancelled
deadline immediately.
"""

from heapq import heapify, heappop, heappush

from proxy.jobs.model import JobId, Millis

# The range of deadlines that share one bucket.
BUCKET_MILLIS = 1024

# Minimum number of empty buckets before they are removed. Without a removal, a day of traffic would
# leave one for each second.
EMPTY_BUCKETS_MIN = 64


class DeadlineIndex:
    """Holds at most one deadline for each job, and returns those that have passed."""

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
