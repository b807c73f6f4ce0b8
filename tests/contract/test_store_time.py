"""The contract of `JobStore`: deadlines, retentions, deliveries."""

import asyncio

from harness.data.jobs import ALICE, HERE
from harness.data.store_steps import (
    LATER_RUN,
    MINUTE,
    T0,
    WHY,
    Submit,
    ended,
    found,
    ids,
    purge,
    settle,
    take,
)

from proxy.jobs.lifecycle import Event, Status
from proxy.jobs.model import Delivery, EndpointId, JobId, Millis, Owner, Receiver
from proxy.jobs.served_model import Model
from proxy.store.base import JobStore

HOOK = "https://example.com/hook"
BOB = Owner("bob")


# Deadlines


async def test_due_jobs_are_returned_earliest_first(store: JobStore, submit: Submit) -> None:
    await submit("later", queued_until=Millis(T0 + 2_000))
    await submit("sooner", queued_until=Millis(T0 + 1_000))
    await submit("between", queued_until=Millis(T0 + 1_500))
    await submit("never")
    assert ids(await store.due(Millis(T0 + 999), 10)) == []
    assert ids(await store.due(Millis(T0 + 1_000), 10)) == ["sooner"]
    assert ids(await store.due(Millis(T0 + 5_000), 10)) == ["sooner", "between", "later"]
    assert ids(await store.due(Millis(T0 + 5_000), 2)) == ["sooner", "between"]


async def test_a_deadline_follows_the_job(store: JobStore, submit: Submit) -> None:
    await submit("a", queued_until=Millis(T0 + 1_000), execution_timeout=Millis(60_000))
    [job] = await take(store)
    assert ids(await store.due(Millis(T0 + 59_999), 10)) == []
    assert ids(await store.due(Millis(T0 + 60_000), 10)) == ["a"]
    await settle(store, job, Event.RELEASE)
    assert ids(await store.due(Millis(T0 + 999), 10)) == []
    assert ids(await store.due(Millis(T0 + 1_000), 10)) == ["a"]
    [job] = await take(store)
    await settle(store, job, Event.COMPLETE)
    assert ids(await store.due(Millis(T0 + 999_999), 10)) == []


# Retention


async def test_an_ended_job_is_kept_for_its_retention(store: JobStore, submit: Submit) -> None:
    await submit("a", retention=Millis(10_000))
    [job] = await take(store)
    await store.append(job.id, job.run, [b"1"])
    await settle(store, job, Event.COMPLETE, now=T0, output=b"2")
    assert await store.forget(Millis(T0 + 9_999), 10) == 0
    assert await store.find(job.id) is not None
    assert await store.forget(Millis(T0 + 10_000), 10) == 1
    assert await store.find(job.id) is None
    assert await store.recent(HERE, ALICE, before=None, limit=9) == []
    assert await store.read(job.id, 0, 9) in (((), 0), ([], 0))
    assert (await store.counts(HERE)).completed == 1
    await submit("a")
    assert (await found(store, "a")).status is Status.IN_QUEUE


async def test_forget_deletes_at_most_its_limit(store: JobStore, submit: Submit) -> None:
    await submit(*"abcde", retention=Millis(0))
    for job in await take(store):
        await settle(store, job, Event.COMPLETE, now=T0)
    assert [await store.forget(T0, 2) for _ in range(4)] == [2, 2, 1, 0]


async def test_forget_reaches_a_large_limit(store: JobStore, submit: Submit) -> None:
    await asyncio.gather(*(submit(f"{number}", retention=Millis(0)) for number in range(700)))
    await purge(store)
    assert [await store.forget(T0, 650) for _ in range(3)] == [650, 50, 0]


async def test_a_job_that_has_not_ended_is_never_forgotten(store: JobStore, submit: Submit) -> None:
    await submit("a", "b", retention=Millis(1))
    await take(store, limit=1)
    assert await store.forget(Millis(T0 * 1_000), 10) == 0


async def test_a_retried_job_is_not_forgotten(store: JobStore, submit: Submit) -> None:
    await submit("a", retention=Millis(10))
    await take(store)
    await settle(store, "a", Event.FAIL, now=T0)
    await settle(store, "a", Event.RETRY, now=T0)
    assert await store.forget(Millis(T0 * 1_000), 10) == 0


# Limiting the life of a job


async def test_an_unfinished_life_can_be_limited(store: JobStore, submit: Submit) -> None:
    await submit("a", "b", expires_at=Millis(T0 + 99_999))
    await take(store, limit=1)
    for name in ("a", "b"):
        before = await found(store, name)
        limited = await store.limit_life(before.id, Millis(T0 + 1_000))
        assert limited == await found(store, name) != before
        assert limited is not None
        assert limited.submission.expires_at == T0 + 1_000
    assert ids(await store.due(Millis(T0 + 999), 10)) == []
    assert ids(await store.due(Millis(T0 + 1_000), 10)) == ["a", "b"]


async def test_a_finished_life_can_be_limited(store: JobStore, submit: Submit) -> None:
    await submit("a", retention=Millis(MINUTE))
    await take(store)
    await settle(store, "a", Event.COMPLETE, now=T0 + 10, output=b"1")
    limited = await store.limit_life(JobId("a"), Millis(T0 + 50))
    assert limited is not None
    assert (limited.submission.retention, limited.output) == (40, b"1")
    assert await store.forget(Millis(T0 + 49), 10) == 0
    assert await store.forget(Millis(T0 + 50), 10) == 1


async def test_the_life_of_an_unknown_job_cannot_be_limited(store: JobStore) -> None:
    assert await store.limit_life(JobId("unknown"), T0) is None


# Deliveries


async def due_deliveries(
    store: JobStore, now: int = T0 + MINUTE, limit: int = 10
) -> list[tuple[str, int]]:
    return [(one.job.id, one.tries) for one in await store.deliveries(Millis(now), limit)]


async def ended_with_webhook(
    store: JobStore, submit: Submit, job_id: str, now: int = T0
) -> Delivery:
    await submit(job_id, webhook=HOOK, retention=Millis(0))
    [job] = await take(store)
    await settle(store, job, Event.FAIL, now=now)
    [delivery] = [one for one in await store.deliveries(Millis(now), 10) if one.job.id == job_id]
    return delivery


async def test_the_end_of_a_job_with_a_webhook_has_a_delivery(
    store: JobStore, submit: Submit
) -> None:
    await submit("a", "b", "c", webhook=HOOK)
    await submit("silent")
    assert await due_deliveries(store) == []
    await take(store)
    await settle(store, "a", Event.RELEASE)
    await settle(store, "c", Event.COMPLETE, now=T0 + 1, output=b'"done"')
    await settle(store, "b", Event.CANCEL, now=T0 + 2, error=WHY)
    await settle(store, "silent", Event.COMPLETE)
    assert await due_deliveries(store, T0) == []
    assert await due_deliveries(store, T0 + 1) == [("c", 0)]
    assert await due_deliveries(store) == await due_deliveries(store) == [("c", 0), ("b", 0)]
    assert await due_deliveries(store, limit=1) == [("c", 0)]
    [delivery, _] = await store.deliveries(Millis(T0 + MINUTE), 10)
    assert delivery.job == (await found(store, "c")).outline()


async def test_deliveries_to_some_receivers_can_be_skipped(store: JobStore, submit: Submit) -> None:
    hooks = (
        ("a", ALICE, "https://one.example/x"),
        ("b", ALICE, "https://ONE.example:443/y"),
        ("c", ALICE, "https://one.example:8443/y"),
        ("d", ALICE, "http://two.example"),
        ("e", BOB, "https://one.example"),
    )
    for number, (name, owner, hook) in enumerate(hooks):
        await submit(name, webhook=hook, owner=owner)
        await take(store)
        await settle(store, name, Event.FAIL, now=T0 + number)

    async def besides(*receivers: Receiver, limit: int = 10) -> list[str]:
        found = await store.deliveries(Millis(T0 + MINUTE), limit, besides=receivers)
        return [one.job.id for one in found]

    one = Receiver(ALICE, "https://one.example")
    assert await besides() == ["a", "b", "c", "d", "e"]
    assert await besides(one) == ["c", "d", "e"]
    assert await besides(one, limit=1) == ["c"]
    assert await besides(Receiver(BOB, "http://two.example")) == ["a", "b", "c", "d", "e"]
    others = (
        Receiver(ALICE, "https://one.example:8443"),
        Receiver(ALICE, "http://two.example"),
        Receiver(BOB, "https://one.example"),
    )
    assert await besides(one, *others) == []
    assert await besides(*others, limit=1) == ["a"]


async def test_deliveries_of_some_owners_can_be_skipped(store: JobStore, submit: Submit) -> None:
    for name, owner in (("a", ALICE), ("b", BOB), ("c", Owner("carol"))):
        await submit(name, webhook=HOOK, owner=owner)
        await take(store)
        await settle(store, name, Event.FAIL, now=T0)

    async def besides(*owners: Owner) -> list[str]:
        return [one.job.id for one in await store.deliveries(T0, 10, besides_owners=owners)]

    assert await besides() == ["a", "b", "c"]
    assert await besides(BOB) == ["a", "c"]
    assert await besides(ALICE, Owner("carol"), Owner("unknown")) == ["b"]


async def test_the_earliest_deliveries_of_all_receivers_come_first(
    store: JobStore, submit: Submit
) -> None:
    """The order holds after deliveries were tried, withdrawn and ended."""
    for number in range(12):
        owner = (ALICE, BOB)[number % 2]
        await submit(f"{number}", webhook=f"http://host-{number % 3}.example", owner=owner)
        await take(store)
        await settle(store, f"{number}", Event.FAIL, now=T0 + 10 * number)
    every = {one.job.id: one for one in await store.deliveries(Millis(T0 + 999), 99)}
    assert [*every] == [f"{number}" for number in range(12)]
    await store.tried(every[JobId("0")], Millis(T0 + 75))
    await store.tried(every[JobId("4")], None)
    await ended(store, "1", Event.RETRY)
    await store.tried(every[JobId("11")], Millis(T0 + 2_000))
    expected = [("2", 0), ("3", 0), ("5", 0), ("6", 0), ("7", 0), ("0", 1), ("8", 0), ("9", 0)]
    assert await due_deliveries(store, T0 + 99) == expected
    for limit in range(len(expected)):
        assert await due_deliveries(store, T0 + 99, limit) == expected[:limit]


async def test_a_delivery_is_tried_until_it_arrives(store: JobStore, submit: Submit) -> None:
    delivery = await ended_with_webhook(store, submit, "a")
    await store.tried(delivery, Millis(T0 + 10_000))
    assert await due_deliveries(store, T0 + 9_999) == []
    assert await due_deliveries(store, T0 + 10_000) == [("a", 1)]
    # A late report of the first try.
    await store.tried(delivery, None)
    assert await due_deliveries(store) == [("a", 1)]
    [second] = await store.deliveries(Millis(T0 + 10_000), 10)
    await store.tried(second, None)
    await store.tried(second, Millis(T0))
    assert await due_deliveries(store) == []


async def test_a_retry_deletes_a_delivery(store: JobStore, submit: Submit) -> None:
    delivery = await ended_with_webhook(store, submit, "a")
    await ended(store, "a", Event.RETRY)
    assert await due_deliveries(store) == []
    await store.tried(delivery, Millis(T0))
    assert await due_deliveries(store) == []
    await ended(store, "a", Event.CANCEL)
    # A late report of the earlier end; the new end has a delivery of its own.
    await store.tried(delivery, None)
    assert await due_deliveries(store) == [("a", 0)]


async def test_a_job_with_a_pending_delivery_is_not_forgotten(
    store: JobStore, submit: Submit
) -> None:
    waiting = await ended_with_webhook(store, submit, "waiting")
    await submit("over", retention=Millis(5))
    await take(store)
    await settle(store, "over", Event.COMPLETE, now=T0)
    # The job with a pending delivery does not count towards the limit.
    assert await store.forget(Millis(T0 + MINUTE), 1) == 1
    assert await store.find(JobId("over")) is None
    await store.tried(waiting, Millis(T0 + 1))
    assert await store.forget(Millis(T0 + MINUTE), 1) == 0
    [again] = await store.deliveries(Millis(T0 + 1), 1)
    await store.tried(again, None)
    assert await store.forget(Millis(T0 + MINUTE), 1) == 1


async def test_a_delivery_of_a_deleted_job_has_no_effect(store: JobStore, submit: Submit) -> None:
    delivery = await ended_with_webhook(store, submit, "a")
    await store.tried(delivery, None)
    await store.forget(Millis(T0 + MINUTE), 1)
    await store.tried(delivery, T0)
    assert await due_deliveries(store) == []


async def test_deliveries_that_are_too_far_ahead_can_be_made_due(
    store: JobStore, submit: Submit
) -> None:
    for job_id, pause in (("a", 10_000), ("b", 10_001), ("c", 3_600_000)):
        delivery = await ended_with_webhook(store, submit, job_id)
        await store.tried(delivery, Millis(T0 + pause))
    assert await store.hasten(Millis(T0 + 10_000), T0) == 2
    assert sorted(await due_deliveries(store, T0)) == [("b", 1), ("c", 1)]
    assert await store.hasten(Millis(T0 + 10_000), T0) == 0
    assert ("a", 1) in await due_deliveries(store, T0 + 10_000)


async def test_a_run_that_was_taken_in_the_future_gets_its_time_limit_when_it_is_adopted(
    store: JobStore, submit: Submit
) -> None:
    await submit("ahead", "past", execution_timeout=Millis(5_000))
    await take(store, limit=1, now=T0 + 24 * 60 * MINUTE)
    await take(store, limit=1, now=T0 - 1_000)
    for job_id in ("ahead", "past"):
        assert await store.adopt(JobId(job_id), 1, LATER_RUN, T0)
    assert (await found(store, "ahead")).taken_at == T0
    assert (await found(store, "past")).taken_at == T0 - 1_000
    assert ids(await store.due(Millis(T0 + 4_999), 9)) == ["past"]
    assert ids(await store.due(Millis(T0 + 5_000), 9)) == ["past", "ahead"]


async def test_the_newest_time_is_that_of_any_event(store: JobStore, submit: Submit) -> None:
    later = Millis(T0 + 100)
    assert await store.newest(later) is None
    await submit("a")
    assert await store.newest(later) == T0
    [job] = await take(store, now=T0 + 5)
    assert await store.newest(later) == T0 + 5
    await settle(store, job, Event.COMPLETE, now=T0 + 9)
    assert await store.newest(later) == T0 + 9
    moments = [await store.newest(Millis(T0 + millis)) for millis in (9, 8, 4, -1)]
    assert moments == [T0 + 9, T0 + 5, T0, None]


async def test_the_models_of_an_endpoint_are_kept_in_their_order(store: JobStore) -> None:
    assert await store.served_models() == {}
    models = [
        Model("z", b'{"id": "z"}'),
        Model("a", None, base=False, routes=frozenset({"/v1/score", "/score"})),
        Model("\u00fc/1", b"{}"),
    ]
    await store.set_served_models(HERE, models)
    await store.set_served_models(EndpointId("other"), [Model("x")])
    found = await store.served_models()
    assert {endpoint: list(found[endpoint]) for endpoint in found} == {
        HERE: models,
        "other": [Model("x")],
    }
    await store.set_served_models(HERE, models[1:])
    assert list((await store.served_models())[HERE]) == models[1:]
