"""Slow receivers, and owners with many deliveries, delay no other receiver."""

import asyncio
from pathlib import Path

import pytest
from harness.data.jobs import submission
from harness.data.store_steps import STORES
from harness.network.webhook_desk import Desk
from harness.network.webhook_receiver import receiver
from harness.tools.waiting import until

from proxy.jobs.lifecycle import Event
from proxy.jobs.model import Input, Job, Owner

ALICE, BOB = Owner("alice"), Owner("bob")
DUE_JOBS = 3_000


@pytest.fixture
def desk() -> Desk:
    return Desk()


async def end_many(desk: Desk, number: int, url: str) -> None:
    """End many of Alice's jobs at once."""
    now = desk.clock.now()
    wanted = [
        submission(f"many-{one}", owner=ALICE, work=Input(b"1"), webhook=url)
        for one in range(number)
    ]
    await asyncio.gather(*(desk.store.submit(one, now) for one in wanted))
    await asyncio.gather(*(desk.store.settle(one.id, Event.CANCEL, now=now) for one in wanted))


@pytest.mark.parametrize("kind", STORES)
@pytest.mark.parametrize("owner", [ALICE, BOB])
async def test_a_dead_receiver_does_not_delay_another_port_of_its_host(
    kind: str, owner: Owner, tmp_path: Path
) -> None:
    desk = Desk(STORES[kind](tmp_path))
    async with desk.store.open(), receiver() as dead, receiver() as quick:
        dead.may_answer.clear()
        await end_many(desk, DUE_JOBS, dead.url)
        async with desk.open() as deliveries:
            deliveries.wake()
            await until(lambda: dead.now == 4, what="its places are used")
            for number in range(20):
                await desk.end(f"quick-{number}", quick.url, owner=owner)
            deliveries.wake()
            for _ in range(20):
                await quick.next()
        assert dead.most == 4


async def test_a_dead_receiver_of_one_owner_is_quick_for_another(desk: Desk) -> None:
    async with receiver() as shared, desk.open() as deliveries:
        shared.may_answer.clear()
        await end_many(desk, 100, shared.url)
        deliveries.wake()
        await until(lambda: shared.now == 4, what="its places are used")
        await desk.end("bob's", shared.url, owner=BOB)
        deliveries.wake()
        await until(lambda: shared.now == 5, what="the delivery of the other owner has arrived")


async def test_one_owner_with_many_dead_receivers_does_not_delay_others(desk: Desk) -> None:
    async with receiver() as dead, receiver() as quick, desk.open(max_deliveries=16) as deliveries:
        dead.may_answer.clear()
        for number in range(200):
            await desk.end(f"dead-{number}", dead.named(f"host-{number}.example"), owner=ALICE)
        deliveries.wake()
        await until(lambda: dead.now == 8, what="half of the places are used")
        for number in range(20):
            await desk.end(f"quick-{number}", quick.url, owner=BOB)
        deliveries.wake()
        for _ in range(20):
            await quick.next()
        assert dead.most == 8


async def test_large_bodies_for_a_dead_receiver_leave_space_for_others(desk: Desk) -> None:
    async def large(_: Job) -> bytes:
        return b"1" * 20

    async with receiver() as dead, receiver() as quick:
        dead.may_answer.clear()
        async with desk.open(render=large, max_body_bytes=64) as deliveries:
            await end_many(desk, 10, dead.url)
            deliveries.wake()
            await until(lambda: dead.now == 2, what="it has more than half of the space")
            await desk.end("same owner", quick.url, owner=ALICE)
            await desk.end("other owner", quick.url, owner=BOB)
            deliveries.wake()
            for _ in range(2):
                await quick.next()
        assert dead.most == 2
