"""The contract of `JobStore`: one suite, every store."""

import asyncio
from dataclasses import replace
from typing import Any

import pytest
from harness.jobs import ALICE, HERE, REQUEST, submission

from proxy.jobs.lifecycle import Event, Status
from proxy.jobs.model import Counts, EndpointId, Job, JobError, JobId, Millis, Owner, WorkerId
from proxy.store.base import JobStore

WORKER = WorkerId("w-1")
WHY = JobError("because", "Because.")
T0 = Millis(1_000_000)


async def submit(store: JobStore, *ids: str, **changed: Any) -> list[Job]:
    return [await store.submit(submission(job_id, **changed), T0) for job_id in ids]


async def take(store: JobStore, limit: int = 10, light_limit: int = 10, endpoint: EndpointId = HERE) -> list[Job]:
    return list(await store.take(endpoint, WORKER, limit=limit, light_limit=light_limit, now=T0))


async def settle(store: JobStore, job: Job | str, event: Event, **more: Any) -> Job | None:
    job_id = JobId(job) if isinstance(job, str) else job.id
    return await store.settle(job_id, event, **{"now": Millis(T0 + 5_000)} | more)


def ids(jobs: Any) -> list[str]:
    return [job.id for job in jobs]


# Submitting and looking


async def test_a_submitted_job_is_in_queue(store: JobStore) -> None:
    [job] = await submit(store, "a")
    assert (job.status, job.attempt, job.failures, job.created_at) == (Status.IN_QUEUE, 0, 0, T0)
    assert job.submission == submission("a")
    assert await store.get(HERE, ALICE, JobId("a")) == job
    assert await store.find(JobId("a")) == job


async def test_a_submit_may_be_repeated(store: JobStore) -> None:
    [first] = await submit(store, "a")
    again = await store.submit(submission("a", low_priority=True), Millis(T0 + 1))
    assert again == first
    assert ids(await take(store)) == ["a"]


async def test_another_owner_or_endpoint_does_not_find_it(store: JobStore) -> None:
    await submit(store, "a")
    assert await store.get(HERE, Owner("bob"), JobId("a")) is None
    assert await store.get(EndpointId("other"), ALICE, JobId("a")) is None
    assert await store.get(HERE, ALICE, JobId("b")) is None


async def test_recent_jobs_come_newest_first_in_pages(store: JobStore) -> None:
    await submit(store, "a", "b", "c")
    await submit(store, "x", owner=Owner("bob"))
    page = await store.recent(HERE, ALICE, before=None, limit=2)
    assert ids(page) == ["c", "b"]
    assert ids(await store.recent(HERE, ALICE, before=page[-1].sequence, limit=2)) == ["a"]


# Taking


async def test_jobs_leave_in_order(store: JobStore) -> None:
    await submit(store, "a", "b", "c")
    assert ids(await take(store, limit=2)) == ["a", "b"]
    assert ids(await take(store, limit=2)) == ["c"]
    assert await take(store) == []


async def test_a_taken_job_says_who_has_it_since_when(store: JobStore) -> None:
    await submit(store, "a")
    [job] = await take(store)
    assert (job.status, job.worker, job.taken_at, job.attempt) == (Status.IN_PROGRESS, WORKER, T0, 1)
    assert await store.find(job.id) == job


async def test_low_priority_waits_behind_normal(store: JobStore) -> None:
    await submit(store, "low", low_priority=True)
    await submit(store, "normal")
    assert ids(await take(store)) == ["normal", "low"]


async def test_light_jobs_have_a_limit_of_their_own(store: JobStore) -> None:
    await submit(store, "a", "b")
    await submit(store, "x", "y", light=True)
    assert ids(await take(store, limit=0, light_limit=1)) == ["x"]
    assert ids(await take(store, limit=1, light_limit=0)) == ["a"]
    assert sorted(ids(await take(store))) == ["b", "y"]


async def test_endpoints_have_queues_of_their_own(store: JobStore) -> None:
    await submit(store, "a")
    await submit(store, "b", endpoint=EndpointId("other"))
    assert ids(await take(store, endpoint=EndpointId("other"))) == ["b"]
    assert ids(await take(store)) == ["a"]


async def test_no_job_is_taken_twice(store: JobStore) -> None:
    await submit(store, *(f"job-{number}" for number in range(100)))
    taken = await asyncio.gather(*(take(store, limit=7) for _ in range(30)))
    everything = [job_id for batch in taken for job_id in ids(batch)]
    assert len(everything) == len(set(everything)) == 100


# Settling


@pytest.mark.parametrize(
    ("event", "status"),
    [
        (Event.COMPLETE, Status.COMPLETED),
        (Event.FAIL, Status.FAILED),
        (Event.CANCEL, Status.CANCELLED),
        (Event.EXPIRE, Status.TIMED_OUT),
    ],
)
async def test_a_running_job_ends_once(store: JobStore, event: Event, status: Status) -> None:
    await submit(store, "a")
    [job] = await take(store)
    ended = await settle(store, job, event, attempt=1, error=WHY)
    assert ended is not None
    assert (ended.status, ended.error, ended.finished_at) == (status, WHY, T0 + 5_000)
    for late in (Event.COMPLETE, Event.FAIL, Event.CANCEL, Event.EXPIRE, Event.RELEASE):
        assert await settle(store, job, late) is None
    assert await store.find(job.id) == ended


@pytest.mark.parametrize("event", [Event.CANCEL, Event.EXPIRE])
async def test_a_queued_job_that_ends_leaves_the_queue(store: JobStore, event: Event) -> None:
    await submit(store, "a", "b")
    assert await settle(store, "a", event) is not None
    assert ids(await take(store)) == ["b"]


@pytest.mark.parametrize("event", [Event.COMPLETE, Event.FAIL, Event.RELEASE, Event.RETRY])
async def test_a_queued_job_cannot_do_what_only_others_can(store: JobStore, event: Event) -> None:
    [job] = await submit(store, "a")
    assert await settle(store, job, event) is None
    assert await store.find(job.id) == job


async def test_an_unknown_job_cannot_do_anything(store: JobStore) -> None:
    assert await settle(store, "nobody", Event.CANCEL) is None


async def test_the_attempt_is_a_fence(store: JobStore) -> None:
    await submit(store, "a")
    [first] = await take(store)
    await settle(store, first, Event.RELEASE, attempt=1)
    [second] = await take(store)
    assert second.attempt == 2
    for event in (Event.COMPLETE, Event.FAIL, Event.RELEASE):
        assert await settle(store, second, event, attempt=1) is None
    assert await settle(store, second, Event.COMPLETE, attempt=2) is not None


async def test_a_released_job_is_first_in_line_again(store: JobStore) -> None:
    await submit(store, "a", "b")
    [job] = await take(store, limit=1)
    released = await settle(store, job, Event.RELEASE, attempt=1)
    assert released is not None
    assert (released.status, released.worker, released.taken_at) == (Status.IN_QUEUE, None, None)
    assert ids(await take(store)) == ["a", "b"]


async def test_only_a_loss_counts_as_a_failure(store: JobStore) -> None:
    await submit(store, "a")
    for counts, failures in ((False, 0), (True, 1), (True, 2), (False, 2)):
        [job] = await take(store)
        released = await settle(store, job, Event.RELEASE, counts=counts)
        assert released is not None
        assert released.failures == failures


async def test_a_take_and_a_cancel_cannot_both_win(store: JobStore) -> None:
    await submit(store, *(f"job-{number}" for number in range(50)))
    taken, *cancelled = await asyncio.gather(
        take(store, limit=25), *(settle(store, f"job-{number}", Event.CANCEL) for number in range(50))
    )
    assert all(job is not None for job in cancelled)  # a running job can be cancelled too, each exactly once
    assert len(taken) + len(await take(store, limit=50)) <= 50
    assert (await store.counts(HERE)).cancelled == 50


async def test_an_interactive_job_forgets_its_body_when_it_ends(store: JobStore) -> None:
    await submit(store, "a")
    await submit(store, "kept", durable=True)
    for job in await take(store):
        await settle(store, job, Event.FAIL)
    a, kept = await store.find(JobId("a")), await store.find(JobId("kept"))
    assert a is not None
    assert kept is not None
    assert a.submission.work == replace(REQUEST, body=b"")
    assert kept.submission.work == REQUEST


# Retrying


async def failed(store: JobStore, job_id: str, **changed: Any) -> Job:
    await submit(store, job_id, durable=True, **changed)
    [job] = await take(store)
    ended = await settle(store, job, Event.FAIL, error=WHY)
    assert ended is not None
    return ended


async def test_a_retried_job_starts_over_at_the_end_of_the_queue(store: JobStore) -> None:
    job = await failed(store, "a", expires_at=Millis(T0 + 60_000))
    await submit(store, "b")
    retried = await settle(store, job, Event.RETRY, now=Millis(T0 + 30_000))
    assert retried is not None
    assert (retried.status, retried.failures, retried.error, retried.retries) == (Status.IN_QUEUE, 0, None, 1)
    assert retried.submission.expires_at == T0 + 90_000
    assert retried.attempt == 1
    taken = await take(store)
    assert ids(taken) == ["b", "a"]
    assert taken[1].attempt == 2


async def test_what_did_not_fail_cannot_be_retried(store: JobStore) -> None:
    await submit(store, "a", "b", durable=True)
    [a, b] = await take(store)
    await settle(store, a, Event.COMPLETE)
    await settle(store, b, Event.CANCEL)
    assert await settle(store, a, Event.RETRY) is None
    assert await settle(store, b, Event.RETRY) is None


async def test_an_interactive_job_cannot_be_retried(store: JobStore) -> None:
    await submit(store, "a")
    [job] = await take(store)
    await settle(store, job, Event.FAIL)
    assert await settle(store, job, Event.RETRY) is None


# Purging, deadlines, retention


async def test_a_purge_cancels_what_waits_and_nothing_else(store: JobStore) -> None:
    await submit(store, "a", "b", "c")
    await submit(store, "light", light=True)
    await submit(store, "elsewhere", endpoint=EndpointId("other"))
    await take(store, limit=1, light_limit=0)
    purged = await store.purge(HERE, ALICE, T0, WHY)
    assert sorted(ids(purged)) == ["b", "c", "light"]
    assert {job.status for job in purged} == {Status.CANCELLED}
    assert await take(store) == []
    assert await store.purge(HERE, ALICE, T0, WHY) == []


async def test_what_is_due_comes_earliest_first(store: JobStore) -> None:
    await submit(store, "later", queued_until=Millis(T0 + 2_000))
    await submit(store, "sooner", queued_until=Millis(T0 + 1_000))
    await submit(store, "never")
    assert ids(await store.due(Millis(T0 + 999), 10)) == []
    assert ids(await store.due(Millis(T0 + 5_000), 10)) == ["sooner", "later"]
    assert ids(await store.due(Millis(T0 + 5_000), 1)) == ["sooner"]


async def test_a_deadline_follows_the_job(store: JobStore) -> None:
    await submit(store, "a", queued_until=Millis(T0 + 1_000), execution_timeout=Millis(60_000))
    [job] = await take(store)
    assert ids(await store.due(Millis(T0 + 59_999), 10)) == []
    assert ids(await store.due(Millis(T0 + 60_000), 10)) == ["a"]
    await settle(store, job, Event.COMPLETE)
    assert ids(await store.due(Millis(T0 + 999_999), 10)) == []


async def test_an_ended_job_is_kept_for_its_retention(store: JobStore) -> None:
    await submit(store, "a", retention=Millis(10_000))
    [job] = await take(store)
    await settle(store, job, Event.COMPLETE, now=T0)
    assert await store.forget(Millis(T0 + 9_999), 10) == 0
    assert await store.find(job.id) is not None
    assert await store.forget(Millis(T0 + 10_000), 10) == 1
    assert await store.find(job.id) is None


async def test_a_job_that_has_not_ended_is_never_forgotten(store: JobStore) -> None:
    await submit(store, "a", "b", retention=Millis(1))
    await take(store, limit=1)
    assert await store.forget(Millis(T0 * 1_000), 10) == 0


# Output


async def test_output_is_read_by_cursor_by_anyone(store: JobStore) -> None:
    await submit(store, "a", durable=True)
    [job] = await take(store)
    assert await store.append(job.id, 1, [b"one", b"two"]) == 2
    assert await store.append(job.id, 1, [b"three"]) == 3
    assert await store.read(job.id, 0, 2) == ([b"one", b"two"], 2)
    assert await store.read(job.id, 2, 2) == ([b"three"], 3)
    assert await store.read(job.id, 3, 2) == ([], 3)
    assert await store.read(job.id, 0, 2) == ([b"one", b"two"], 2)


async def test_only_the_current_attempt_writes_and_begins_anew(store: JobStore) -> None:
    await submit(store, "a", durable=True)
    [job] = await take(store)
    await store.append(job.id, 1, [b"old"])
    await settle(store, job, Event.RELEASE)
    await take(store)
    assert await store.append(job.id, 1, [b"late"]) is None
    assert await store.append(job.id, 2, [b"new"]) == 1
    assert await store.read(job.id, 0, 9) == ([b"new"], 1)
    await settle(store, job, Event.COMPLETE)
    assert await store.append(job.id, 2, [b"too late"]) is None
    assert await store.read(job.id, 0, 9) == ([b"new"], 1)


# Counting


async def test_counts_equal_what_happened(store: JobStore) -> None:
    await submit(store, *"abcdef", durable=True)
    jobs = await take(store, limit=4)
    for job, event in zip(jobs, (Event.COMPLETE, Event.FAIL, Event.CANCEL, Event.EXPIRE), strict=True):
        await settle(store, job, event)
    await settle(store, "b", Event.RETRY)
    assert await store.counts(HERE) == Counts(
        in_queue=3, in_progress=0, completed=1, failed=1, cancelled=1, timed_out=1, retried=1
    )
    assert await store.counts(EndpointId("other")) == Counts()


async def test_a_queued_job_knows_how_many_stand_before_it(store: JobStore) -> None:
    jobs = await submit(store, "a", "b", "c")
    assert [store.ahead(job) for job in jobs] == [0, 1, 2]
    await take(store, limit=1)
    assert store.ahead(jobs[2]) == 1
