"""The interactive jobs that have ended: they can still be read for a while."""

import sys
from collections import OrderedDict
from collections.abc import Iterator

from proxy.jobs.model import InteractiveJob, JobId, Millis, Request

RETENTION_MILLIS = Millis(60_000)
# Ended jobs: at 333 a second, each can be read until its retention expires.
ENDED_MAX_JOBS = 20_000
# An error message can have 64 KB.
ENDED_MAX_BYTES = 32 * 1024 * 1024
# Approximate size of an ended job in memory, without its texts.
JOB_OVERHEAD_BYTES = 1024


class EndedJobs:
    """Ended jobs, without their bodies. The oldest are evicted, so that memory is bounded at any
    rate.

    `jobs` has them by id, in the order of their ends; to read. Iteration yields them.
    """

    def __init__(self, max_jobs: int = ENDED_MAX_JOBS, max_bytes: int = ENDED_MAX_BYTES) -> None:
        self._max_jobs = max_jobs
        self._max_bytes = max_bytes
        self.jobs: OrderedDict[JobId, InteractiveJob] = OrderedDict()
        self._bytes = 0

    def __len__(self) -> int:
        return len(self.jobs)

    def __iter__(self) -> Iterator[InteractiveJob]:
        return iter(self.jobs.values())

    def add(self, job: InteractiveJob) -> None:
        """Add a job that has just ended; its request body is dropped."""
        job.drop_body()
        self.jobs[job.id] = job
        self._bytes += _size_bytes(job)
        while len(self.jobs) > self._max_jobs or self._bytes > self._max_bytes:
            self._evict()

    def forget(self, now: Millis) -> None:
        """Drop the jobs whose retention has ended."""
        while self.jobs:
            oldest = next(iter(self.jobs.values()))
            if oldest.finished_at is None or oldest.finished_at + RETENTION_MILLIS > now:
                return
            self._evict()

    def _evict(self) -> None:
        _, job = self.jobs.popitem(last=False)
        self._bytes -= _size_bytes(job)


def _size_bytes(job: InteractiveJob) -> int:
    """Return the approximate size of an ended job in memory."""
    size = JOB_OVERHEAD_BYTES
    work = job.submission.work
    if isinstance(work, Request):
        # Text of header fields has one byte for each character.
        size += len(work.path) + len(work.content_type)
    if job.error is not None:
        size += sys.getsizeof(job.error.message)
    return size
