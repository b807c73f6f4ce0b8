"""The deadline index removes changed deadlines, and keeps the others in order."""

import random

from proxy.jobs.model import JobId, Millis
from proxy.store.job_index import BUCKET_MILLIS, EMPTY_BUCKETS_MIN, DeadlineIndex

DAY_MILLIS = 24 * 3600_000


def test_removed_deadlines_leave_no_buckets_behind() -> None:
    """By default a job expires after a day, and nearly every job ends long before."""
    index = DeadlineIndex()
    for second in range(20_000):
        job_id = JobId(f"job-{second}")
        index.set(job_id, Millis(second * 1000 + DAY_MILLIS))
        index.set(job_id, None)
    assert len(index._buckets) <= EMPTY_BUCKETS_MIN + 1
    assert len(index._order) <= EMPTY_BUCKETS_MIN + 1


def test_due_deadlines_survive_the_removal_of_empty_buckets() -> None:
    chance = random.Random(1)
    index = DeadlineIndex()
    moments: dict[JobId, Millis] = {}
    for number in range(30_000):
        job_id = JobId(f"job-{chance.randrange(50)}")
        moment = Millis(number + chance.randrange(5_000) * BUCKET_MILLIS)
        index.set(job_id, moment if chance.random() < 0.7 else None)
        moments.pop(job_id, None)
        if job_id in index._moments:
            moments[job_id] = moment
        if number % 500 == 0:
            now = Millis(chance.randrange(5_000) * BUCKET_MILLIS)
            expected = sorted((due, one) for one, due in moments.items() if due <= now)
            assert index.due(now, 1_000) == [one for _, one in expected]
    assert len(index) == len(moments)
    assert len(index._order) == len(set(index._order)) == len(index._buckets)
