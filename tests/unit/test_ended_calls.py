"""Ended interactive jobs can be read for a minute, and use bounded memory at any rate."""

import sys
from collections import deque

import pytest
from harness.data.clock import FakeClock
from harness.data.jobs import ALICE, HERE, REQUEST, submission
from harness.data.store_steps import T0, WORKER

from proxy.app import Parts
from proxy.jobs.lifecycle import Event, Status
from proxy.jobs.model import (
    EndpointId,
    InteractiveJob,
    JobError,
    JobId,
    Millis,
    Owner,
    Request,
)
from proxy.jobs.policy import Ending, RunEnd
from proxy.service.ended_jobs import ENDED_MAX_JOBS, JOB_OVERHEAD_BYTES, RETENTION_MILLIS, EndedJobs
from proxy.service.mailbox import Mailbox

# Of the smaller collection of these tests.
MAX_JOBS = 2_000
MAX_BYTES = 4_000_000
SWEEP_SECONDS = 0.25
CALLS_PER_SWEEP = 8


@pytest.fixture
def small() -> EndedJobs:
    """A collection with small bounds."""
    return EndedJobs(MAX_JOBS, MAX_BYTES)


def ended(number: int, now: int = T0, message: str = "", work: Request = REQUEST) -> InteractiveJob:
    """Return a job that was submitted, taken and ended at the same time."""
    job = InteractiveJob(submission(f"{number}", work=work), number, Millis(now))
    job.take(WORKER, Millis(now))
    error = JobError("because", message) if message else None
    assert job.end(Event.FAIL if message else Event.COMPLETE, error, Millis(now))
    return job


def end_call(parts: Parts) -> str:
    """Submit, take and complete a job whose client then leaves; return its id."""
    [endpoint] = parts.endpoints
    mailbox = parts.interactive.call(endpoint, ALICE, REQUEST, light=False, queue_timeout=None)
    [taken] = parts.interactive.take(HERE, WORKER, 1, light=False)
    assert taken is mailbox
    mailbox.end(1, RunEnd(Ending.COMPLETED))
    parts.interactive.hang_up(mailbox)
    return mailbox.job.id


def is_there(parts: Parts, job_id: str) -> bool:
    job = parts.interactive.get(HERE, ALICE, JobId(job_id))
    assert job is None or job.is_terminal
    return job is not None


def count(parts: Parts) -> int:
    """Return the number of jobs that can be read."""
    return len(parts.interactive.recent(HERE, ALICE, before=None, limit=10**9, status=None))


# Retention


def test_jobs_at_a_moderate_rate_are_kept_for_their_retention(
    parts: Parts, clock: FakeClock
) -> None:
    """32 jobs a second for two minutes: each is kept for 60 s and forgotten by the next sweep."""
    ends: deque[tuple[int, str]] = deque()
    for _ in range(int(120 / SWEEP_SECONDS)):
        now = clock.now()
        ends += [(now, end_call(parts)) for _ in range(CALLS_PER_SWEEP)]
        parts.interactive.end_overdue()
        while ends[0][0] + RETENTION_MILLIS <= now:
            assert not is_there(parts, ends.popleft()[1])
        assert is_there(parts, ends[0][1])
        clock.pass_time(SWEEP_SECONDS)
    assert count(parts) == len(ends) == 60 / SWEEP_SECONDS * CALLS_PER_SWEEP


def test_the_retention_begins_with_the_end(parts: Parts, clock: FakeClock) -> None:
    [endpoint] = parts.endpoints
    running = parts.interactive.call(endpoint, ALICE, REQUEST, light=False, queue_timeout=None)
    parts.interactive.take(HERE, WORKER, 1, light=False)
    clock.pass_time(120)
    parts.interactive.end_overdue()
    running.end(1, RunEnd(Ending.COMPLETED))
    parts.interactive.hang_up(running)
    clock.pass_time(59.999)
    parts.interactive.end_overdue()
    assert is_there(parts, running.job.id)
    clock.pass_time(0.001)
    parts.interactive.end_overdue()
    assert not is_there(parts, running.job.id)
    assert parts.interactive.counts(HERE).completed == 1


def test_a_job_whose_client_still_waits_is_read_once(parts: Parts) -> None:
    [endpoint] = parts.endpoints
    mailbox = parts.interactive.call(endpoint, ALICE, REQUEST, light=False, queue_timeout=None)
    assert parts.interactive.cancel(HERE, ALICE, mailbox.job.id) == mailbox.job.outline()
    assert count(parts) == 1
    parts.interactive.hang_up(mailbox)
    assert count(parts) == 1
    assert parts.interactive.get(HERE, ALICE, mailbox.job.id) == mailbox.job.outline()


def test_another_owner_or_endpoint_does_not_find_an_ended_job(parts: Parts) -> None:
    job_id = JobId(end_call(parts))
    bob, other = Owner("bob"), EndpointId("other")
    assert is_there(parts, job_id)
    for endpoint, owner in ((HERE, bob), (other, ALICE)):
        assert parts.interactive.get(endpoint, owner, job_id) is None
        assert parts.interactive.cancel(endpoint, owner, job_id) is None
        found = parts.interactive.recent(endpoint, owner, before=None, limit=9, status=None)
        assert list(found) == []
    assert parts.interactive.get(HERE, ALICE, JobId("unknown")) is None


# Bounds


def test_memory_is_bounded_at_any_rate(small: EndedJobs) -> None:
    """Jobs end faster than their retention does: the oldest ones are evicted."""
    for number in range(8_000):
        small.add(ended(number, T0 + number))
        assert len(small) == min(MAX_JOBS, number + 1)
    assert [job.id for job in small] == [f"{number}" for number in range(6_000, 8_000)]
    assert small.jobs.get(JobId("5999")) is None
    assert small.jobs.get(JobId("6000")) is not None


def test_the_size_of_errors_is_bounded(small: EndedJobs) -> None:
    long = "x" * 60_000
    last = 2 * MAX_BYTES // len(long)
    for number in range(last + 1):
        small.add(ended(number, message=long + str(number)))
    assert MAX_BYTES // 2 < len(small) * len(long) <= MAX_BYTES
    assert small.jobs.get(JobId(f"{last}")) is not None


@pytest.mark.parametrize("name", ["path", "content_type"])
def test_the_size_of_a_request_line_is_bounded(small: EndedJobs, name: str) -> None:
    fields = {"path": "/v1/audio/transcriptions", "content_type": "multipart/form-data"}
    fields[name] += "x" * 30_000
    work = Request("POST", body=b"", **fields)
    for number in range(2 * MAX_BYTES // 30_000):
        small.add(ended(number, work=work))
    assert MAX_BYTES // 2 < len(small) * 30_000 <= MAX_BYTES


def test_the_bodies_of_ended_jobs_are_not_kept(small: EndedJobs) -> None:
    for number in range(100):
        small.add(ended(number, work=Request("POST", "/v1/x", "text/plain", bytes(1_000_000))))
    assert len(small) == 100
    assert {job.submission.work.body for job in small} == {b""}


def test_a_job_that_is_larger_than_the_bound_is_not_kept(small: EndedJobs) -> None:
    small.add(ended(1))
    small.add(ended(2, message="x" * 2 * MAX_BYTES))
    assert len(small) == 0
    small.add(ended(3))
    assert [job.id for job in small] == ["3"]


def test_forgotten_and_evicted_jobs_use_no_memory(small: EndedJobs) -> None:
    long = "x" * 60_000
    for number in range(1_000):
        small.add(ended(number, T0 + number, long + str(number)))
        if number % 100 == 99:
            small.forget(Millis(T0 + number + RETENTION_MILLIS))
            assert (len(small), small._bytes) == (0, 0)
    for number in range(MAX_JOBS):
        small.add(ended(number))
    assert MAX_JOBS * JOB_OVERHEAD_BYTES <= small._bytes <= MAX_BYTES


def test_the_cost_of_an_eviction_is_constant(small: EndedJobs) -> None:
    """The cost is counted in function calls instead of seconds."""
    calls = 0

    def note(_frame: object, event: str, _argument: object) -> None:
        nonlocal calls
        calls += event == "call"

    costs = []
    for first in (0, 2 * MAX_JOBS, 10 * MAX_JOBS):
        for number in range(first, first + MAX_JOBS):
            small.add(ended(number))
        jobs = [ended(number) for number in range(first + MAX_JOBS, first + MAX_JOBS + 300)]
        calls = 0
        sys.setprofile(note)
        try:
            for job in jobs:
                small.add(job)
        finally:
            sys.setprofile(None)
        costs.append(calls)
    assert max(costs) < 1.1 * min(costs)


async def test_only_ended_calls_are_evicted(parts: Parts, clock: FakeClock) -> None:
    """Checks the default bound."""
    [endpoint] = parts.endpoints

    def call() -> Mailbox:
        return parts.interactive.call(endpoint, ALICE, REQUEST, light=False, queue_timeout=None)

    durable = await parts.store.submit(submission("durable"), clock.now())
    await parts.store.settle(durable.id, Event.CANCEL, now=clock.now())
    running = call()
    parts.interactive.take(HERE, WORKER, 1, light=False)
    queued = call()
    job_ids = []
    for _ in range(ENDED_MAX_JOBS + 10):
        mailbox = call()
        parts.interactive.hang_up(mailbox)
        job_ids.append(mailbox.job.id)
    assert [is_there(parts, job_ids[number]) for number in (0, 9, 10, -1)] == [
        False,
        False,
        True,
        True,
    ]
    assert count(parts) == ENDED_MAX_JOBS + 2
    assert (running.job.status, queued.job.status) == (Status.IN_PROGRESS, Status.IN_QUEUE)
    assert await parts.store.find(durable.id) is not None
    assert parts.interactive.counts(HERE).cancelled == ENDED_MAX_JOBS + 10
