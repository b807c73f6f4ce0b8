"""The contract of `JobStore`: submission, queue order and events of jobs."""

import asyncio
from typing import Any

import pytest
from harness.data.jobs import ALICE, HERE, REQUEST, submission
from harness.data.store_steps import (
    LATER_RUN,
    MINUTE,
    RUN,
    T0,
    WHY,
    WORKER,
    Submit,
    ended,
    found,
    ids,
    purge,
    settle,
    take,
)
from msgspec.structs import replace

from proxy.jobs.lifecycle import Event, Status
from proxy.jobs.model import (
    Counts,
    EndpointId,
    Input,
    InteractiveJob,
    JobId,
    Millis,
    Owner,
    WorkerId,
)
from proxy.jobs.policy import LOW_PRIORITY_WAIT_MILLIS
from proxy.store.base import JobStore

BOB = Owner("bob")
OTHER = EndpointId("other")
# The events that a run, or its deadline, causes.
OF_A_RUN = (Event.COMPLETE, Event.FAIL, Event.RELEASE, Event.CANCEL, Event.EXPIRE)


# Submitting and reading


async def test_a_submitted_job_is_in_queue(store: JobStore, submit: Submit) -> None:
    [job] = await submit("a")
    assert (job.status, job.attempt, job.failures, job.created_at) == (Status.IN_QUEUE, 0, 0, T0)
    assert job.submission == submission("a")
    assert await store.get(HERE, ALICE, JobId("a")) == job.outline()
    assert job.submission.work.body
    assert await store.find(JobId("a")) == job


async def test_all_fields_of_a_submission_are_kept(store: JobStore, submit: Submit) -> None:
    wanted = {
        "work": Input('{"text": "ümläut \u0000 \U0001f600"}'.encode()),
        "light": True,
        "low_priority": True,
        "queued_until": Millis(T0 + 1),
        "expires_at": Millis(T0 + 2),
        "execution_timeout": Millis(7 * 24 * 3_600_000),
        "retention": Millis(0),
        "webhook": "https://example.com/?a=b&c=ü",
        "s3_config": bytes(range(256)),
    }
    [job] = await submit("a", **wanted)
    for name, value in wanted.items():
        assert getattr(job.submission, name) == value
    assert await found(store, "a") == job
    [taken] = await take(store)
    assert taken.submission == job.submission
    assert await found(store, "a") == taken


async def test_a_submit_may_be_repeated(store: JobStore, submit: Submit) -> None:
    [first] = await submit("a")
    assert await submit("a", low_priority=True) == [first]
    both = await asyncio.gather(*(submit("b") for _ in range(2)))
    assert both[0] == both[1]
    taken = await take(store)
    assert ids(taken) == ["a", "b"]
    assert await submit("a") == taken[:1]


async def test_another_owner_or_endpoint_does_not_find_it(store: JobStore, submit: Submit) -> None:
    await submit("a")
    assert await store.get(HERE, BOB, JobId("a")) is None
    assert await store.get(OTHER, ALICE, JobId("a")) is None
    assert await store.get(HERE, ALICE, JobId("b")) is None


async def test_recent_jobs_are_paged_newest_first(store: JobStore, submit: Submit) -> None:
    await submit("a", "b", "c")
    await submit("x", owner=BOB)
    await submit("y", endpoint=OTHER)
    page = await store.recent(HERE, ALICE, before=None, limit=2)
    assert ids(page) == ["c", "b"]
    assert ids(await store.recent(HERE, ALICE, before=page[-1].sequence, limit=2)) == ["a"]


async def test_recent_jobs_can_be_filtered_by_status(store: JobStore, submit: Submit) -> None:
    await submit("a", "b", "c", "d")
    taken = await take(store, limit=2)
    await settle(store, taken[0], Event.COMPLETE)
    found_by_status = {
        status: ids(await store.recent(HERE, ALICE, before=None, limit=10, status=status))
        for status in Status
    }
    assert found_by_status == {status: [] for status in Status} | {
        Status.IN_QUEUE: ["d", "c"], Status.IN_PROGRESS: ["b"], Status.COMPLETED: ["a"]
    }  # fmt: skip
    assert ids(await store.recent(HERE, ALICE, before=None, limit=1, status=Status.IN_QUEUE)) == [
        "d"
    ]


async def test_listings_omit_large_values(store: JobStore, submit: Submit) -> None:
    await submit(
        "queued",
        "running",
        "ended",
        low_priority=True,
        s3_config=b"secret",
        queued_until=Millis(T0 + 1),
    )
    await submit("done", "going", s3_config=b"secret")
    await take(store, limit=2)
    await settle(store, "done", Event.COMPLETE, output=b'"a lot"')
    listed = [
        *await store.recent(HERE, ALICE, before=None, limit=9),
        *await store.running(),
        *await store.due(Millis(T0 + MINUTE), 9),
        *await purge(store, now=T0 + MINUTE),
    ]
    assert {"queued", "running", "ended", "done", "going"} == set(ids(listed))
    for job in listed:
        assert (job.submission.work, job.submission.s3_config) == (replace(REQUEST, body=b""), None)
        assert job.output is None


async def test_running_jobs_are_listed(store: JobStore, submit: Submit) -> None:
    await submit("a", "b", "c")
    await take(store, limit=2)
    await settle(store, "a", Event.COMPLETE)
    [job] = await store.running()
    assert (job.id, job.status, job.attempt, job.worker) == ("b", Status.IN_PROGRESS, 1, WORKER)


# Taking


async def test_jobs_leave_in_order(store: JobStore, submit: Submit) -> None:
    await submit("a", "b", "c")
    assert ids(await take(store, limit=2)) == ["a", "b"]
    assert ids(await take(store, limit=2)) == ["c"]
    assert await take(store) == []


async def test_jobs_of_both_priorities_leave_in_one_order(store: JobStore, submit: Submit) -> None:
    for number in range(7):
        await submit(f"{number}", low_priority=number in {1, 2})
    assert ids(await take(store, limit=3)) == ["0", "3", "4"]
    assert ids(await take(store, limit=3)) == ["5", "6", "1"]
    assert ids(await take(store, limit=3)) == ["2"]


async def test_a_taken_job_has_its_worker_and_time(store: JobStore, submit: Submit) -> None:
    await submit("a")
    [job] = await take(store)
    assert (job.status, job.worker, job.taken_at, job.attempt) == (
        Status.IN_PROGRESS,
        WORKER,
        T0,
        1,
    )
    assert await store.find(job.id) == job


async def test_low_priority_waits_behind_normal(store: JobStore, submit: Submit) -> None:
    await submit("low", low_priority=True)
    await submit("normal")
    assert ids(await take(store)) == ["normal", "low"]


async def test_low_priority_counts_as_normal_after_a_long_wait(
    store: JobStore, submit: Submit
) -> None:
    await submit("low", "low too", low_priority=True)
    await submit("normal", "normal too")
    assert ids(await take(store, limit=1, now=T0 + LOW_PRIORITY_WAIT_MILLIS - 1)) == ["normal"]
    assert ids(await take(store, limit=2, now=T0 + LOW_PRIORITY_WAIT_MILLIS)) == ["low", "low too"]
    await settle(store, "low too", Event.RELEASE)
    assert ids(await take(store, limit=2, now=T0 + LOW_PRIORITY_WAIT_MILLIS)) == [
        "low too",
        "normal too",
    ]


async def test_light_jobs_have_a_limit_of_their_own(store: JobStore, submit: Submit) -> None:
    await submit("a", "b")
    await submit("x", "y", light=True)
    assert ids(await take(store, limit=0, light_limit=1)) == ["x"]
    assert ids(await take(store, limit=1, light_limit=0)) == ["a"]
    assert ids(await take(store)) == ["b", "y"]


async def test_endpoints_have_queues_of_their_own(store: JobStore, submit: Submit) -> None:
    await submit("a")
    await submit("b", endpoint=OTHER)
    assert ids(await take(store, endpoint=OTHER)) == ["b"]
    assert ids(await take(store)) == ["a"]


async def test_no_job_is_taken_twice(store: JobStore, submit: Submit) -> None:
    await submit(*(f"job-{number}" for number in range(100)))
    taken = await asyncio.gather(*(take(store, limit=7) for _ in range(30)))
    everything = [job_id for batch in taken for job_id in ids(batch)]
    assert len(everything) == len(set(everything)) == 100


async def test_a_take_replaces_jobs_that_are_cancelled_concurrently(
    store: JobStore, submit: Submit
) -> None:
    await submit("a", "b", "c", "d")
    *_, taken = await asyncio.gather(
        settle(store, "a", Event.CANCEL), settle(store, "b", Event.CANCEL), take(store, limit=2)
    )
    assert ids(taken) == ["c", "d"]


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
async def test_a_running_job_ends_once(
    store: JobStore, submit: Submit, event: Event, status: Status
) -> None:
    await submit("a")
    [job] = await take(store)
    after = await ended(store, job, event, run=RUN, error=WHY, output=b"[1]")
    assert (after.status, after.error, after.finished_at, after.output) == (
        status,
        WHY,
        T0 + 5_000,
        b"[1]",
    )
    for late in (Event.COMPLETE, Event.FAIL, Event.CANCEL, Event.EXPIRE, Event.RELEASE):
        assert await settle(store, job, late) is None
    assert await store.find(job.id) == after


async def test_only_one_of_several_concurrent_ends_takes_effect(
    store: JobStore, submit: Submit
) -> None:
    await submit("a")
    [job] = await take(store)
    events = (Event.COMPLETE, Event.FAIL, Event.CANCEL, Event.EXPIRE, Event.RELEASE) * 3
    results = await asyncio.gather(*(settle(store, job, event, run=RUN) for event in events))
    [after] = [result for result in results if result is not None]
    assert await found(store, "a") == after


@pytest.mark.parametrize("event", [Event.CANCEL, Event.EXPIRE])
async def test_a_queued_job_that_ends_leaves_the_queue(
    store: JobStore, submit: Submit, event: Event
) -> None:
    await submit("a", "b")
    after = await ended(store, "a", event)
    assert (after.worker, after.taken_at, after.attempt) == (None, None, 0)
    assert ids(await take(store)) == ["b"]


@pytest.mark.parametrize(
    "event", [Event.COMPLETE, Event.FAIL, Event.RELEASE, Event.RETRY, Event.TAKE]
)
async def test_other_events_do_not_apply_to_a_queued_job(
    store: JobStore, submit: Submit, event: Event
) -> None:
    [job] = await submit("a")
    assert await settle(store, job, event) is None
    assert await store.find(job.id) == job


async def test_no_event_applies_to_an_unknown_job(store: JobStore) -> None:
    for event in Event:
        assert await settle(store, "unknown", event) is None


async def test_the_run_is_a_fencing_token(store: JobStore, submit: Submit) -> None:
    await submit("a")
    [first] = await take(store)
    await settle(store, first, Event.RELEASE, run=RUN)
    [second] = await take(store, run=LATER_RUN)
    assert (second.attempt, second.run) == (2, LATER_RUN)
    for event in OF_A_RUN:
        assert await settle(store, second, event, run=RUN) is None
    await ended(store, second, Event.COMPLETE, run=LATER_RUN)


async def test_each_take_gives_its_jobs_a_number(store: JobStore, submit: Submit) -> None:
    submitted = await submit("a", "b", "c")
    assert {job.run for job in submitted} == {0}
    taken = await take(store, limit=2)
    taken += await take(store, run=LATER_RUN)
    assert [(job.id, job.run) for job in taken] == [("a", RUN), ("b", RUN), ("c", LATER_RUN)]
    for job in taken:
        assert await store.find(job.id) == job


@pytest.mark.parametrize("event", [Event.RELEASE, Event.RETRY])
async def test_a_job_keeps_its_number_until_the_next_take(
    store: JobStore, submit: Submit, event: Event
) -> None:
    await submit("a")
    [job] = await take(store)
    if event is Event.RETRY:
        await ended(store, job, Event.FAIL)
    assert (await ended(store, job, event)).run == RUN
    [again] = await take(store, run=LATER_RUN)
    assert again.run == LATER_RUN


async def test_the_earlier_number_of_an_adopted_run_settles_nothing(
    store: JobStore, submit: Submit
) -> None:
    await submit("a")
    [job] = await take(store)
    adopted = await store.adopt(job.id, job.attempt, LATER_RUN, T0)
    assert adopted is not None
    assert (adopted.job.attempt, adopted.job.run, adopted.cursor) == (1, LATER_RUN, 0)
    for event in OF_A_RUN:
        assert await settle(store, job, event, run=RUN) is None
    assert await found(store, "a") == replace(job, run=LATER_RUN)
    await ended(store, job, Event.COMPLETE, run=LATER_RUN)


async def test_a_released_job_returns_to_the_front_of_the_queue(
    store: JobStore, submit: Submit
) -> None:
    await submit("a", "b")
    [job] = await take(store, limit=1)
    released = await ended(store, job, Event.RELEASE, run=RUN)
    assert (released.status, released.worker, released.taken_at) == (Status.IN_QUEUE, None, None)
    assert released.submission == job.submission
    assert ids(await take(store)) == ["a", "b"]


async def test_only_a_loss_counts_as_a_failure(store: JobStore, submit: Submit) -> None:
    await submit("a")
    for counts, failures in ((False, 0), (True, 1), (True, 2), (False, 2)):
        [job] = await take(store)
        assert (await ended(store, job, Event.RELEASE, counts=counts)).failures == failures


async def test_a_take_and_a_cancel_cannot_both_win(store: JobStore, submit: Submit) -> None:
    await submit(*(f"job-{number}" for number in range(50)))
    taken, *cancelled = await asyncio.gather(
        take(store, limit=25),
        *(settle(store, f"job-{number}", Event.CANCEL) for number in range(50)),
    )
    # A running job can be cancelled too, but each job only once.
    assert all(job is not None for job in cancelled)
    assert len(taken) + len(await take(store, limit=50)) <= 50
    assert (await store.counts(HERE)).cancelled == 50


async def test_a_body_is_kept_while_it_can_be_needed(store: JobStore, submit: Submit) -> None:
    hook = "https://example.com"
    events = (Event.COMPLETE, Event.FAIL, Event.CANCEL, Event.EXPIRE)
    kept = set()
    for webhook in (None, hook):
        for event in events:
            name = f"{event} {webhook}"
            await submit(name, webhook=webhook, s3_config=b"secret")
            [job] = await take(store)
            work = (await ended(store, job, event)).submission
            assert work == (await found(store, name)).submission
            assert work in (job.submission, job.submission.without_body())
            if work == job.submission:
                kept.add(name)
    assert kept == {"fail None", "expire None", *(f"{event} {hook}" for event in events)}


# Retrying


async def test_a_retried_job_starts_over_at_the_end_of_the_queue(
    store: JobStore, submit: Submit
) -> None:
    deadlines = {"expires_at": Millis(T0 + 60_000), "queued_until": Millis(T0 + 10_000)}
    await submit("a", **deadlines)
    [job] = await take(store)
    await settle(store, job, Event.RELEASE, counts=True)
    [job] = await take(store)
    assert (await ended(store, job, Event.FAIL, error=WHY, output=b"half")).failures == 1
    await submit("b")
    retried = await ended(store, job, Event.RETRY, now=T0 + 30_000)
    assert (retried.status, retried.failures, retried.error, retried.retry_count) == (
        Status.IN_QUEUE,
        0,
        None,
        1,
    )
    assert (retried.output, retried.finished_at, retried.created_at) == (None, None, T0 + 30_000)
    assert retried.submission.work == REQUEST
    assert (retried.submission.expires_at, retried.submission.queued_until) == (
        T0 + 90_000,
        T0 + 40_000,
    )
    assert retried.attempt == 2
    assert await found(store, "a") == retried
    taken = await take(store)
    assert ids(taken) == ["b", "a"]
    assert taken[1].attempt == 3


async def test_only_failed_jobs_can_be_retried(store: JobStore, submit: Submit) -> None:
    await submit("a", "b")
    [a, b] = await take(store)
    await settle(store, a, Event.COMPLETE)
    await settle(store, b, Event.CANCEL)
    assert await settle(store, a, Event.RETRY) is None
    assert await settle(store, b, Event.RETRY) is None


# Purging


async def test_a_purge_cancels_queued_jobs_only(store: JobStore, submit: Submit) -> None:
    await submit("a", "b", "c")
    await submit("light", light=True)
    await submit("low", low_priority=True)
    await submit("bob's", owner=BOB)
    await submit("elsewhere", endpoint=OTHER)
    await take(store, limit=1, light_limit=0)
    purged = await purge(store)
    assert sorted(ids(purged)) == ["b", "c", "light", "low"]
    assert {(job.status, job.error, job.finished_at) for job in purged} == {
        (Status.CANCELLED, WHY, T0)
    }
    assert ids(await take(store)) == ["bob's"]
    assert ids(await take(store, endpoint=OTHER)) == ["elsewhere"]
    assert await purge(store) == []
    assert (await found(store, "a")).status is Status.IN_PROGRESS
    assert (await found(store, "b")).status is Status.CANCELLED


async def test_a_job_is_either_purged_or_taken(store: JobStore, submit: Submit) -> None:
    await submit(*(f"job-{number}" for number in range(60)))
    results = await asyncio.gather(
        take(store, limit=20),
        purge(store),
        take(store, limit=20),
        purge(store),
    )
    assert sorted(job_id for jobs in results for job_id in ids(jobs)) == sorted(
        f"job-{number}" for number in range(60)
    )


async def test_a_purge_has_pages(store: JobStore, submit: Submit) -> None:
    await submit(*"abcd")
    await submit("light", light=True)
    await submit("bob's", owner=BOB)
    before = store.next_sequence()
    await submit("late")
    pages = [
        sorted(ids(await store.purge(HERE, ALICE, T0, WHY, before=before, limit=2)))
        for _ in range(4)
    ]
    assert pages == [["a", "b"], ["c", "d"], ["light"], []]
    assert await store.purge(HERE, ALICE, T0, WHY, before=store.next_sequence(), limit=0) == []
    assert ids(await take(store)) == ["bob's", "late"]


async def test_an_empty_page_of_a_purge_is_the_last(store: JobStore, submit: Submit) -> None:
    await submit(*"abcde")
    *_, purged = await asyncio.gather(
        *(settle(store, name, Event.CANCEL) for name in "abc"),
        store.purge(HERE, ALICE, T0, WHY, before=store.next_sequence(), limit=3),
    )
    assert purged is not None
    assert ids(purged) == ["d", "e"]
    assert store.queued(HERE, light=False) == 0


async def test_a_job_that_is_retried_during_a_purge_remains(
    store: JobStore, submit: Submit
) -> None:
    await submit(*"abc")
    await take(store, limit=1)
    await ended(store, "a", Event.FAIL)
    before = store.next_sequence()
    page = await store.purge(HERE, ALICE, T0, WHY, before=before, limit=1)
    await ended(store, "a", Event.RETRY)
    page = [*page, *await store.purge(HERE, ALICE, T0, WHY, before=before, limit=9)]
    assert ids(page) == ["b", "c"]
    assert ids(await take(store)) == ["a"]


# Counting


async def test_counts_match_the_events(store: JobStore, submit: Submit) -> None:
    await submit(*"abcdef")
    jobs = await take(store, limit=4)
    for job, event in zip(
        jobs, (Event.COMPLETE, Event.FAIL, Event.CANCEL, Event.EXPIRE), strict=True
    ):
        await settle(store, job, event)
    await settle(store, "b", Event.RETRY)
    await settle(store, "f", Event.CANCEL)
    await submit("g", "h")
    await store.take(HERE, WorkerId("w-2"), limit=1, light_limit=0, now=T0, run=RUN)
    assert await store.counts(HERE) == Counts(
        in_queue=3, in_progress=1, completed=1, failed=1, cancelled=2, timed_out=1, retried=1
    )
    assert await store.counts(OTHER) == Counts()


# Hints for other queues


async def test_a_queued_job_has_a_queue_position(store: JobStore, submit: Submit) -> None:
    jobs = await submit("a", "b", "c")
    [low] = await submit("low", low_priority=True)
    assert [store.ahead(job) for job in (*jobs, low)] == [0, 1, 2, 3]
    await take(store, limit=1)
    assert [store.ahead(job) for job in (*jobs[1:], low)] == [0, 1, 2]


def foreign(store: JobStore, **changed: Any) -> InteractiveJob:
    """Return a job of another queue, behind all jobs that the store has now."""
    return InteractiveJob(submission("foreign", **changed), store.next_sequence(), T0)


async def test_a_job_of_another_queue_has_the_position_of_its_sequence(
    store: JobStore, submit: Submit
) -> None:
    first = foreign(store)
    [a, b] = await submit("a", "b")
    await submit("low", low_priority=True)
    second = foreign(store)
    low = foreign(store, low_priority=True)
    await submit("c")
    await submit("last", low_priority=True)
    await submit("light", light=True)
    light = foreign(store, light=True)
    other = foreign(store, endpoint=OTHER)
    foreigners = (first, second, low, light, other)
    assert [store.ahead(job) for job in foreigners] == [0, 2, 4, 1, 0]
    await take(store, limit=1, light_limit=0)
    assert [store.ahead(job) for job in foreigners] == [0, 1, 3, 1, 0]
    await settle(store, a, Event.RELEASE)
    await settle(store, b, Event.CANCEL)
    assert [store.ahead(job) for job in foreigners] == [0, 1, 3, 1, 0]
    await purge(store)
    assert [store.ahead(job) for job in foreigners] == [0, 0, 0, 0, 0]


async def test_jobs_of_another_queue_have_sequences_of_their_own(
    store: JobStore, submit: Submit
) -> None:
    sequences = [store.next_sequence()]
    sequences += [job.sequence for job in await submit("a", "b")]
    sequences += [store.next_sequence(), store.next_sequence()]
    [a, _] = await take(store)
    await ended(store, a, Event.FAIL)
    sequences.append((await ended(store, a, Event.RETRY)).sequence)
    sequences.append(store.next_sequence())
    sequences += [job.sequence for job in await submit("c", low_priority=True, light=True)]
    sequences.append(store.next_sequence())
    assert sequences == sorted(set(sequences))


def queued(store: JobStore, endpoint: EndpointId = HERE) -> tuple[int, int]:
    """Return the numbers of queued jobs: ordinary and light ones."""
    return store.queued(endpoint, light=False), store.queued(endpoint, light=True)


async def test_queued_jobs_are_counted_by_the_credit_that_they_need(
    store: JobStore, submit: Submit
) -> None:
    assert queued(store) == (0, 0)
    await submit("a", "b")
    await submit("low", low_priority=True)
    await submit("x", light=True)
    await submit("light and low", light=True, low_priority=True)
    await submit("elsewhere", endpoint=OTHER)
    await submit("bob's", owner=BOB)
    assert (queued(store), queued(store, OTHER)) == ((4, 2), (1, 0))
    assert queued(store, EndpointId("unknown")) == (0, 0)


async def test_the_number_of_queued_jobs_follows_the_events(
    store: JobStore, submit: Submit
) -> None:
    await submit(*"abcd")
    await submit("low", low_priority=True)
    await submit("x", "y", light=True)
    await submit("bob's", owner=BOB)
    [a, b, x] = await take(store, limit=2, light_limit=1)
    assert queued(store) == (4, 1)
    await settle(store, a, Event.RELEASE, counts=True)
    await settle(store, x, Event.RELEASE)
    assert queued(store) == (5, 2)
    for job in (b, "c", "low", "y"):
        await settle(store, job, Event.CANCEL)
    await settle(store, "d", Event.EXPIRE)
    assert queued(store) == (2, 1)
    await settle(store, "d", Event.RETRY)
    assert queued(store) == (3, 1)
    await purge(store)
    assert queued(store) == (1, 0)
    await take(store)
    assert queued(store) == (0, 0)


async def test_the_queued_jobs_before_a_sequence_are_those_of_normal_priority(
    store: JobStore, submit: Submit
) -> None:
    bounds = [store.next_sequence()]
    for job_id, low_priority in (("low", True), ("a", False), ("later low", True), ("b", False)):
        await submit(job_id, low_priority=low_priority)
        await submit(f"light {job_id}", light=True)
        await submit(f"other {job_id}", endpoint=OTHER)
        bounds.append(store.next_sequence())

    def before(*, light: bool = False) -> list[int]:
        return [store.queued(HERE, light=light, before=bound) for bound in bounds]

    assert before() == [0, 0, 1, 1, 2]
    assert before(light=True) == [0, 1, 2, 3, 4]
    assert store.queued(HERE, light=False) == 4
    [a] = await take(store, limit=1, light_limit=0)
    assert before() == [0, 0, 0, 0, 1]
    await settle(store, a, Event.RELEASE)
    assert before() == [0, 0, 1, 1, 2]
    await settle(store, "b", Event.CANCEL)
    assert before() == [0, 0, 1, 1, 1]
    await take(store, limit=1, light_limit=0)
    await settle(store, "a", Event.FAIL)
    await settle(store, "a", Event.RETRY)
    assert before() == [0, 0, 0, 0, 0], "a retried job is last"
    assert store.queued(HERE, light=False, before=store.next_sequence()) == 1
    await purge(store)
    assert before(light=True) == [0, 0, 0, 0, 0]


async def test_a_job_is_unfinished_until_it_has_ended(store: JobStore, submit: Submit) -> None:
    names = ("queued", "running", "released", "done", "cancelled")
    jobs = {name: JobId(name) for name in names}
    for name in names:
        assert not store.is_unfinished(jobs[name])
    await submit("running", "released", "done", "cancelled", expires_at=Millis(T0 + MINUTE))
    await take(store, limit=3)
    await submit("queued", expires_at=Millis(T0 + MINUTE))
    await settle(store, "released", Event.RELEASE)
    await settle(store, "done", Event.COMPLETE)
    await settle(store, "cancelled", Event.CANCEL)
    unfinished = {name for name in names if store.is_unfinished(jobs[name])}
    assert unfinished == {"queued", "running", "released"}


# Cancelled callers


async def test_a_cancelled_call_takes_effect_completely_or_not_at_all(
    store: JobStore, submit: Submit
) -> None:
    await submit("first")
    for turns in range(4):
        submitting = asyncio.create_task(submit(f"job-{turns}"))
        taking = asyncio.create_task(take(store, limit=1))
        for _ in range(turns):
            await asyncio.sleep(0)
        submitting.cancel()
        taking.cancel()
        await asyncio.gather(submitting, taking, return_exceptions=True)
    await submit("last")
    jobs = await store.recent(HERE, ALICE, before=None, limit=99)
    running = {job.id for job in jobs if job.status is Status.IN_PROGRESS}
    queued = {job.id for job in jobs if job.status is Status.IN_QUEUE}
    counts = await store.counts(HERE)
    assert (counts.in_queue, counts.in_progress) == (len(queued), len(running))
    assert set(ids(await take(store, limit=99))) == queued >= {"last"}
    for job_id in queued | running:
        await ended(store, job_id, Event.COMPLETE)
