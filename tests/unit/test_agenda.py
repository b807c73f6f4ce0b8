import random

from proxy.jobs.model import JobId, Millis
from proxy.store.deadlines import BUCKET, EMPTY, DeadlineIndex

DAY = 24 * 3600_000


def test_moments_that_never_come_leave_nothing_behind() -> None:
    """A job's life ends a day after it began, and nearly every job ends long before."""
    agenda = DeadlineIndex()
    for second in range(20_000):
        job_id = JobId(f"job-{second}")
        agenda.set(job_id, Millis(second * 1000 + DAY))
        agenda.set(job_id, None)
    assert len(agenda._buckets) <= EMPTY + 1
    assert len(agenda._order) <= EMPTY + 1


def test_what_is_due_stays_due_whatever_is_cleared_away() -> None:
    chance, agenda = random.Random(1), DeadlineIndex()
    moments: dict[JobId, Millis] = {}
    for number in range(30_000):
        job_id = JobId(f"job-{chance.randrange(50)}")
        moment = Millis(number + chance.randrange(5_000) * BUCKET)
        agenda.set(job_id, moment if chance.random() < 0.7 else None)
        moments.pop(job_id, None)
        if job_id in agenda._moments:
            moments[job_id] = moment
        if number % 500 == 0:
            now = Millis(chance.randrange(5_000) * BUCKET)
            expected = sorted((due, one) for one, due in moments.items() if due <= now)
            assert agenda.due(now, 1_000) == [one for _, one in expected]
    assert len(agenda) == len(moments)
    assert len(agenda._order) == len(set(agenda._order)) == len(agenda._buckets)
