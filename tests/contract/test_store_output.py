"""The contract of `JobStore`: the log of a durable job's output, and who has taken what of it."""

import asyncio

from harness.stores import Submit, found, settle, take

from proxy.jobs.lifecycle import Event
from proxy.jobs.model import JobId
from proxy.store.base import JobStore

A = JobId("a")


async def read(store: JobStore, cursor: int = 0, limit: int = 9) -> tuple[list[bytes], int]:
    part, after = await store.read(A, cursor, limit)
    return list(part), after


async def running(store: JobStore, submit: Submit) -> None:
    await submit("a", durable=True)
    await take(store)


async def test_output_is_read_by_cursor_by_anyone(store: JobStore, submit: Submit) -> None:
    await running(store, submit)
    assert await read(store) == ([], 0)
    assert await store.append(A, 1, [b"one", b"two"]) == 2
    assert await store.append(A, 1, [b"three"]) == 3
    assert await store.append(A, 1, []) == 3
    assert await read(store, 0, 2) == ([b"one", b"two"], 2)
    assert await read(store, 2, 2) == ([b"three"], 3)
    assert await read(store, 3, 2) == ([], 3)
    assert await read(store, 0, 2) == ([b"one", b"two"], 2)
    assert await read(store, 7, 2) == ([], 7)


async def test_outputs_keep_their_order(store: JobStore, submit: Submit) -> None:
    await running(store, submit)
    await asyncio.gather(*(store.append(A, 1, [b"%d" % number, b"and"]) for number in range(20)))
    part, cursor = await read(store, limit=99)
    assert part == [piece for number in range(20) for piece in (b"%d" % number, b"and")]
    assert cursor == 40


async def test_only_the_current_attempt_writes_and_begins_anew(store: JobStore, submit: Submit) -> None:
    await running(store, submit)
    await store.append(A, 1, [b"old"])
    await settle(store, "a", Event.RELEASE)
    assert await store.append(A, 1, [b"late"]) is None
    assert await read(store) == ([b"old"], 1)
    await take(store)
    assert await read(store) == ([], 0)
    assert await store.append(A, 1, [b"later"]) is None
    assert await store.append(A, 2, [b"new"]) == 1
    assert await read(store) == ([b"new"], 1)
    await settle(store, "a", Event.COMPLETE)
    assert await store.append(A, 2, [b"too late"]) is None
    assert await read(store) == ([b"new"], 1)


async def test_a_retry_forgets_output(store: JobStore, submit: Submit) -> None:
    await running(store, submit)
    await store.append(A, 1, [b"old"])
    await settle(store, "a", Event.FAIL)
    assert await read(store) == ([b"old"], 1)
    await settle(store, "a", Event.RETRY)
    assert await read(store) == ([], 0)


async def test_only_a_durable_job_has_a_log(store: JobStore, submit: Submit) -> None:
    await submit("a", durable=False)
    await take(store)
    assert await store.append(A, 1, [b"one"]) is None
    assert await store.append(JobId("nobody"), 1, [b"one"]) is None
    assert await read(store) == ([], 0)


async def test_what_a_client_has_taken_is_noted(store: JobStore, submit: Submit) -> None:
    await running(store, submit)
    await store.append(A, 1, [b"one", b"two"])
    for cursor, drained in ((1, 1), (2, 2), (1, 2)):
        await store.drain(A, 1, cursor)
        assert (await found(store, "a")).drained == drained
    await store.drain(A, 2, 9)
    assert (await found(store, "a")).drained == 2
    await settle(store, "a", Event.CANCEL)
    await store.drain(A, 1, 3)
    assert (await found(store, "a")).drained == 3
    await store.drain(JobId("nobody"), 1, 1)


async def test_what_was_taken_of_another_attempt_does_not_count(store: JobStore, submit: Submit) -> None:
    await running(store, submit)
    await store.append(A, 1, [b"one"])
    await store.drain(A, 1, 1)
    await settle(store, "a", Event.RELEASE)
    await take(store)
    assert (await found(store, "a")).drained == 0
    await store.drain(A, 1, 1)
    assert (await found(store, "a")).drained == 0
