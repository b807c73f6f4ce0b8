"""What is to be done when: moments by job, cheap to set, to change and to cancel.

Most deadlines never come: a job ends long before. A heap would keep each of them until its time, five minutes of
traffic at the default; here a moment that is changed or cancelled is gone at once.
"""

from heapq import heapify, heappop, heappush

from proxy.jobs.model import JobId, Millis

BUCKET = 1024  # milliseconds that share one bucket
EMPTY = 64  # empty buckets that may stay; a day of traffic would leave one for each second of it


class DeadlineIndex:
    """At most one moment for each job, and which of them have come."""

    def __init__(self) -> None:
        self._moments: dict[JobId, Millis] = {}
        self._buckets: dict[int, set[JobId]] = {}
        self._order: list[int] = []  # a heap of the buckets' numbers
        self._empty = 0  # buckets

    def __len__(self) -> int:
        return len(self._moments)

    def set(self, job_id: JobId, moment: Millis | None) -> None:
        """Note a job's moment in the place of its earlier one; None is never."""
        before = self._moments.pop(job_id, None)
        if before is not None:
            self._leave(before // BUCKET, job_id)
        if moment is not None:
            self._moments[job_id] = moment
            number = moment // BUCKET
            bucket = self._buckets.get(number)
            if bucket is None:
                bucket = self._buckets[number] = set()
                heappush(self._order, number)
            elif not bucket:
                self._empty -= 1
            bucket.add(job_id)

    def due(self, now: Millis, limit: int) -> list[JobId]:
        """The jobs whose moment is not after `now`, earliest first, at most `limit`. They stay noted."""
        found: list[JobId] = []
        looked_at: list[int] = []
        while self._order and self._order[0] * BUCKET <= now and len(found) < limit:
            number = heappop(self._order)
            if not self._buckets[number]:
                del self._buckets[number]
                self._empty -= 1
                continue
            looked_at.append(number)
            came = [job_id for job_id in self._buckets[number] if self._moments[job_id] <= now]
            found += sorted(came, key=lambda job_id: (self._moments[job_id], job_id))
        for number in looked_at:
            heappush(self._order, number)
        return found[:limit]

    def _leave(self, number: int, job_id: JobId) -> None:
        bucket = self._buckets[number]
        bucket.discard(job_id)
        if bucket:
            return
        self._empty += 1
        if self._empty > max(
            EMPTY, len(self._buckets) // 2
        ):  # the half: so it costs each moment next to nothing
            self._buckets = {one: jobs for one, jobs in self._buckets.items() if jobs}
            self._order = list(self._buckets)
            heapify(self._order)
            self._empty = 0
