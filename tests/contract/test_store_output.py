"""The contract of `JobStore`: the output log of a job, and its consumption."""

import asyncio

import pytest
from harness.data.jobs import ALICE, HERE
from harness.data.store_steps import LATER_RUN, RUN, T0, Submit, found, settle, take

from proxy.jobs.lifecycle import Event, Status
from proxy.jobs.model import EndpointId, JobId, Owner
from proxy.store.base import JobStore

A = JobId("a")


async def read(store: JobStore, cursor: int = 0, limit: int = 9) -> tuple[list[bytes], int]:
    part, after = await store.read(A, cursor, limit)
    return list(part), after


async def running(store: JobStore, submit: Submit) -> None:
    await submit("a")
    await take(store)


async def test_output_is_read_by_cursor_by_any_number_of_readers(
    store: JobStore, submit: Submit
) -> None:
    await running(store, submit)
    assert await read(store) == ([], 0)
    assert await store.append(A, RUN, [b"one", b"two"]) == 2
    assert await store.append(A, RUN, [b"three"]) == 3
    assert await store.append(A, RUN, []) == 3
    assert await read(store, 0, 2) == ([b"one", b"two"], 2)
    assert await read(store, 2, 2) == ([b"three"], 3)
    assert await read(store, 3, 2) == ([], 3)
    assert await read(store, 0, 2) == ([b"one", b"two"], 2)
    assert await read(store, 7, 2) == ([], 7)


async def test_outputs_keep_their_order(store: JobStore, submit: Submit) -> None:
    await running(store, submit)
    await asyncio.gather(*(store.append(A, RUN, [b"%d" % number, b"and"]) for number in range(20)))
    part, cursor = await read(store, limit=99)
    assert part == [piece for number in range(20) for piece in (b"%d" % number, b"and")]
    assert cursor == 40


async def test_only_the_current_run_writes_to_the_log(store: JobStore, submit: Submit) -> None:
    await running(store, submit)
    await store.append(A, RUN, [b"old"])
    await settle(store, "a", Event.RELEASE)
    assert await store.append(A, RUN, [b"late"]) is None
    assert await read(store) == ([b"old"], 1)
    await take(store, run=LATER_RUN)
    assert await read(store) == ([], 0)
    assert await store.append(A, RUN, [b"later"]) is None
    assert await store.append(A, LATER_RUN, [b"new"]) == 1
    assert await read(store) == ([b"new"], 1)
    await settle(store, "a", Event.COMPLETE)
    assert await store.append(A, LATER_RUN, [b"too late"]) is None
    assert await read(store) == ([b"new"], 1)


async def test_a_retry_deletes_the_output(store: JobStore, submit: Submit) -> None:
    await running(store, submit)
    await store.append(A, RUN, [b"old"])
    await settle(store, "a", Event.FAIL)
    assert await read(store) == ([b"old"], 1)
    await settle(store, "a", Event.RETRY)
    assert await read(store) == ([], 0)


async def test_only_a_job_that_has_run_has_a_log(store: JobStore, submit: Submit) -> None:
    await submit("a")
    assert await store.append(A, 0, [b"one"]) is None
    assert await store.append(JobId("unknown"), RUN, [b"one"]) is None
    assert await read(store) == ([], 0)


async def test_the_consumed_cursor_never_decreases(store: JobStore, submit: Submit) -> None:
    await running(store, submit)
    await store.append(A, RUN, [b"one", b"two"])
    for cursor, consumed in ((1, 1), (2, 2), (1, 2)):
        await store.consume(A, 1, cursor)
        assert (await found(store, "a")).consumed_cursor == consumed
    await store.consume(A, 2, 9)
    assert (await found(store, "a")).consumed_cursor == 2
    await settle(store, "a", Event.CANCEL)
    await store.consume(A, 1, 3)
    assert (await found(store, "a")).consumed_cursor == 3
    await store.consume(JobId("unknown"), 1, 1)


async def test_the_consumed_cursor_belongs_to_the_attempt(store: JobStore, submit: Submit) -> None:
    await running(store, submit)
    await store.append(A, RUN, [b"one"])
    await store.consume(A, 1, 1)
    await settle(store, "a", Event.RELEASE)
    await take(store)
    assert (await found(store, "a")).consumed_cursor == 0
    await store.consume(A, 1, 1)
    assert (await found(store, "a")).consumed_cursor == 0


async def look(
    store: JobStore, cursor: int | None, limit: int = 9, max_bytes: int = 99
) -> tuple[Status, int, list[bytes], int, int]:
    found = await store.look(HERE, ALICE, A, cursor, limit=limit, max_bytes=max_bytes)
    assert found is not None
    job, part, after, needed = found
    assert job == await store.get(HERE, ALICE, A)
    return job.status, job.attempt, list(part), after, needed


async def test_a_look_returns_a_job_and_its_output(store: JobStore, submit: Submit) -> None:
    await submit("a")
    assert await look(store, None) == (Status.IN_QUEUE, 0, [], 0, 0)
    await take(store)
    await store.append(A, RUN, [b"one", b"two", b"three"])
    assert await look(store, 0, 2) == (Status.IN_PROGRESS, 1, [b"one", b"two"], 2, 0)
    await store.consume(A, 1, 1)
    assert await look(store, None, 1) == (Status.IN_PROGRESS, 1, [b"two"], 2, 0)
    assert await look(store, 7) == (Status.IN_PROGRESS, 1, [], 7, 0)
    await settle(store, "a", Event.RELEASE)
    await take(store, run=LATER_RUN)
    await store.append(A, LATER_RUN, [b"1", b"2", b"3", b"4"])
    assert await look(store, None, 2) == (Status.IN_PROGRESS, 2, [b"1", b"2"], 2, 0)
    await settle(store, "a", Event.COMPLETE)
    assert await look(store, None, 2) == (Status.COMPLETED, 2, [b"1", b"2"], 2, 0)
    assert await look(store, 3, 0) == (Status.COMPLETED, 2, [], 3, 0)


async def test_a_look_ends_before_an_output_that_does_not_fit(
    store: JobStore, submit: Submit
) -> None:
    await running(store, submit)
    await store.append(A, RUN, [b"one", b"two", b"three"])
    assert await look(store, 0, max_bytes=6) == (Status.IN_PROGRESS, 1, [b"one", b"two"], 2, 5)
    assert await look(store, 2, max_bytes=4) == (Status.IN_PROGRESS, 1, [], 2, 5)
    assert await look(store, 2, max_bytes=5) == (Status.IN_PROGRESS, 1, [b"three"], 3, 0)


async def result(
    store: JobStore, max_bytes: int, cursor: int | None = None
) -> tuple[bytes | None, list[bytes], int]:
    found = await store.result(HERE, ALICE, A, max_bytes=max_bytes, cursor=cursor)
    assert found is not None
    assert found.job.outline() == await store.get(HERE, ALICE, A)
    return found.job.output, list(found.outputs), found.size


async def test_a_result_that_is_too_large_is_only_measured(store: JobStore, submit: Submit) -> None:
    await running(store, submit)
    await store.append(A, RUN, [b"one", b"two"])
    assert await result(store, 99) == (None, [], 0)
    await settle(store, "a", Event.COMPLETE, output=b"12345")
    assert await result(store, 4) == (None, [], 5)
    assert await result(store, 5) == (b"12345", [], 5)
    assert await result(store, 5, 0) == (None, [], 6)
    assert await result(store, 6, 0) == (None, [b"one", b"two"], 6)
    assert await result(store, 6, 1) == (None, [b"two"], 3)


async def test_a_result_without_an_output_is_the_log(store: JobStore, submit: Submit) -> None:
    await running(store, submit)
    await store.append(A, RUN, [b"one", b"two"])
    await settle(store, "a", Event.FAIL)
    assert await result(store, 6) == (None, [b"one", b"two"], 6)
    assert await store.result(HERE, Owner("bob"), A, max_bytes=6) is None


async def test_a_look_at_a_job_of_another_owner_finds_nothing(
    store: JobStore, submit: Submit
) -> None:
    await submit("a")
    assert await store.look(HERE, Owner("bob"), A, 0, limit=9, max_bytes=9) is None
    assert await store.look(EndpointId("other"), ALICE, A, 0, limit=9, max_bytes=9) is None
    assert await store.look(HERE, ALICE, JobId("b"), 0, limit=9, max_bytes=9) is None


async def test_a_repeated_append_adds_only_what_is_missing(store: JobStore, submit: Submit) -> None:
    await running(store, submit)
    assert await store.append(A, RUN, [b"one", b"two"], 0) == 2
    assert await store.append(A, RUN, [b"one", b"two"], 0) == 2
    assert await store.append(A, RUN, [b"two", b"three"], 1) == 3
    assert await store.append(A, RUN, [], 3) == 3
    assert await read(store) == ([b"one", b"two", b"three"], 3)
    with pytest.raises(ValueError, match="missing"):
        await store.append(A, RUN, [b"five"], 4)
    assert await read(store) == ([b"one", b"two", b"three"], 3)


async def test_output_of_a_lost_attempt_is_not_delivered(store: JobStore, submit: Submit) -> None:
    await submit("a")
    # Before its first run the job has no output.
    assert not await store.deliver(A, 0)
    await take(store)
    await store.append(A, RUN, [b"one"])
    assert await settle(store, "a", Event.RELEASE, undelivered=True)
    assert not await store.deliver(A, 1)
    assert not await store.consume(A, 1, 1)
    await take(store)
    assert not await store.deliver(A, 1)
    assert await store.deliver(A, 2)


@pytest.mark.parametrize("way", ["deliver", "consume"])
async def test_an_attempt_of_which_output_was_delivered_is_not_released(
    store: JobStore, submit: Submit, way: str
) -> None:
    await running(store, submit)
    await store.append(A, RUN, [b"one"])
    is_delivered = store.deliver(A, 1) if way == "deliver" else store.consume(A, 1, 1)
    assert await is_delivered
    job = await found(store, "a")
    assert (job.delivered, job.consumed_cursor) == (True, int(way == "consume"))
    assert await settle(store, "a", Event.RELEASE, undelivered=True) is None
    assert await settle(store, "a", Event.FAIL)


async def test_a_delivery_and_a_release_exclude_each_other(store: JobStore, submit: Submit) -> None:
    names = [f"{number}" for number in range(40)]
    await submit(*names)
    await take(store, limit=40)
    for number, name in enumerate(names):
        calls = [
            store.deliver(JobId(name), 1),
            settle(store, name, Event.RELEASE, undelivered=True),
        ]
        results = await asyncio.gather(*(calls if number % 2 else calls[::-1]))
        assert sum(bool(result) for result in results) == 1


@pytest.mark.parametrize(
    ("start", "expected"),
    [
        (0, [b"four", b"five"]),
        (1, [b"one", b"four", b"five"]),
        (3, [b"one", b"two", b"three", b"four", b"five"]),
    ],
)
async def test_the_end_of_a_log_is_rewritten(
    store: JobStore, submit: Submit, start: int, expected: list[bytes]
) -> None:
    await running(store, submit)
    await store.append(A, RUN, [b"one", b"two", b"three"])
    assert await store.rewrite(A, RUN, start, [b"four", b"five"])
    assert await read(store) == (expected, len(expected))
    assert await store.append(A, RUN, [b"six"], len(expected)) == len(expected) + 1
    assert await store.rewrite(A, RUN, 1, [])
    assert await read(store) == (expected[:1], 1)


@pytest.mark.parametrize("way", ["deliver", "consume"])
async def test_a_log_of_which_output_was_delivered_is_not_rewritten(
    store: JobStore, submit: Submit, way: str
) -> None:
    await running(store, submit)
    await store.append(A, RUN, [b"one"])
    assert await (store.deliver(A, 1) if way == "deliver" else store.consume(A, 1, 1))
    assert not await store.rewrite(A, RUN, 0, [b"two"])
    assert await read(store) == ([b"one"], 1)


async def test_a_delivery_and_a_rewrite_exclude_each_other(store: JobStore, submit: Submit) -> None:
    names = [f"{number}" for number in range(40)]
    await submit(*names)
    await take(store, limit=40)
    for number, name in enumerate(names):
        calls = [store.deliver(JobId(name), 1), store.rewrite(JobId(name), RUN, 0, [b"new"])]
        await asyncio.gather(*(calls if number % 2 else calls[::-1]))
        log, _ = await store.read(JobId(name), 0, 9)
        # A rewrite took effect before the delivery, or not at all.
        assert list(log) == ([] if number % 2 else [b"new"])
        assert (await found(store, name)).delivered


async def test_only_the_log_of_a_running_attempt_is_rewritten(
    store: JobStore, submit: Submit
) -> None:
    assert not await store.rewrite(A, 0, 0, [b"two"])
    await submit("a")
    assert not await store.rewrite(A, 0, 0, [b"two"])
    await take(store)
    await settle(store, "a", Event.RELEASE)
    await take(store, run=LATER_RUN)
    await store.append(A, LATER_RUN, [b"one"])
    assert not await store.rewrite(A, RUN, 0, [b"two"])
    await settle(store, "a", Event.COMPLETE)
    assert not await store.rewrite(A, LATER_RUN, 0, [b"two"])
    assert await read(store) == ([b"one"], 1)


async def test_only_a_running_attempt_is_adopted(store: JobStore, submit: Submit) -> None:
    await submit("a", "b")
    assert await store.adopt(A, 0, LATER_RUN, T0) is None
    await take(store, limit=1)
    adopted = await store.adopt(A, 1, LATER_RUN, T0)
    assert adopted is not None
    job = adopted.job
    assert (job.id, job.attempt, job.run, job.submission.work.body) == ("a", 1, LATER_RUN, b"")
    assert await store.adopt(A, 2, RUN, T0) is None
    assert await store.adopt(JobId("b"), 1, RUN, T0) is None
    assert await store.adopt(JobId("unknown"), 1, RUN, T0) is None
    assert (await found(store, "a")).run == LATER_RUN
    await settle(store, "a", Event.CANCEL)
    assert await store.adopt(A, 1, RUN, T0) is None
    assert (await found(store, "a")).run == LATER_RUN


async def test_an_adopted_run_continues_its_output_under_its_new_number(
    store: JobStore, submit: Submit
) -> None:
    await running(store, submit)
    await store.append(A, RUN, [b"one"])
    await store.consume(A, 1, 1)
    adopted = await store.adopt(A, 1, LATER_RUN, T0)
    assert adopted is not None
    assert adopted.cursor == 1
    assert await store.append(A, RUN, [b"late"]) is None
    assert await store.append(A, LATER_RUN, [b"two"], 1) == 2
    assert await look(store, None) == (Status.IN_PROGRESS, 1, [b"two"], 2, 0)
    assert await read(store) == ([b"one", b"two"], 2)
    assert await store.consume(A, 1, 2)
    assert await settle(store, "a", Event.RELEASE, run=LATER_RUN, undelivered=True) is None


@pytest.mark.parametrize("ends", [False, True])
async def test_a_page_of_output_is_limited_by_its_bytes(
    store: JobStore, submit: Submit, *, ends: bool
) -> None:
    await running(store, submit)
    await store.append(A, RUN, [b"x" * 100] * 10)
    if ends:
        await settle(store, "a", Event.COMPLETE)
    pages = []
    cursor = 0
    while True:
        page = await store.look(HERE, ALICE, A, cursor, limit=4, max_bytes=250)
        assert page is not None
        cursor = page.cursor
        pages.append((len(page.outputs), page.needed))
        if not page.outputs:
            break
    assert pages == [(2, 100)] * 4 + [(2, 0), (0, 0)]
