"""The memory budget of request bodies."""

import asyncio

import pytest

from proxy.access.limits import Budget, BudgetError, Share


def test_a_size_above_the_free_bytes_is_refused_without_an_effect() -> None:
    budget = Budget(10)
    with budget.share() as share:
        share.grow(7)
        with pytest.raises(BudgetError):
            share.grow(4)
        share.grow(3)
        assert budget.used == 10
    assert budget.used == 0


def test_a_share_is_released_once() -> None:
    budget = Budget(10)
    with budget.share() as share:
        share.grow(7)
        share.give_back()
        assert budget.used == 0
    assert budget.used == 0


def test_each_holder_has_a_limit() -> None:
    budget = Budget(10, each=5)
    with (
        budget.share("alice") as first,
        budget.share("alice") as second,
        budget.share("bob") as other,
    ):
        first.grow(3)
        with pytest.raises(BudgetError):
            second.grow(3)
        other.grow(5)
        second.grow(2)
    assert budget.used == 0
    assert not budget._held


async def test_waiting_requests_are_served_in_order() -> None:
    budget = Budget(10)
    order: list[int] = []

    async def wait(number: int, size: int) -> None:
        with budget.share() as share:
            await share.wait(size)
            order.append(number)

    with budget.share() as first:
        first.grow(8)
        waiting = [
            asyncio.create_task(wait(number, size)) for number, size in enumerate((9, 1, 100, 1))
        ]
        await asyncio.sleep(0)
        with pytest.raises(BudgetError), budget.share() as late:
            # The byte is free, but earlier requests wait.
            late.grow(1)
    await asyncio.gather(*waiting)
    assert order == [0, 1, 2, 3]
    assert budget.used == 0


async def begin(budget: Budget, holder: str, size: int) -> tuple[Share, asyncio.Task[None]]:
    """Return the share of a request that waits for its bytes, if it has to."""
    share = budget.share(holder)
    waiting = asyncio.create_task(share.wait(size))
    await asyncio.sleep(0)
    return share, waiting


async def test_a_holder_at_its_limit_delays_no_other_holder() -> None:
    budget = Budget(10, each=4)
    first, granted = await begin(budget, "alice", 3)
    assert granted.done()
    _, second = await begin(budget, "alice", 2)
    # It would fit, but the earlier request of the same holder comes first.
    _, third = await begin(budget, "alice", 1)
    assert not second.done()
    assert not third.done()
    _, other = await begin(budget, "bob", 4)
    assert other.done()
    first.give_back()
    await asyncio.gather(second, third)
    assert budget.used == 7


async def test_a_request_that_does_not_fit_delays_later_ones_of_other_holders() -> None:
    budget = Budget(10, each=6)
    first, _ = await begin(budget, "alice", 6)
    _, second = await begin(budget, "bob", 5)
    _, third = await begin(budget, "carol", 1)
    assert not second.done()
    assert not third.done()
    first.give_back()
    await asyncio.gather(second, third)


async def test_a_size_above_the_limit_of_a_holder_is_granted_when_it_holds_nothing() -> None:
    budget = Budget(10, each=4)
    first, _ = await begin(budget, "alice", 1)
    _, second = await begin(budget, "alice", 6)
    assert not second.done()
    first.give_back()
    await second
    assert budget.used == 6


async def test_a_cancelled_request_of_a_holder_at_its_limit_is_forgotten() -> None:
    budget = Budget(10, each=4)
    first, _ = await begin(budget, "alice", 4)
    _, cancelled = await begin(budget, "alice", 3)
    _, last = await begin(budget, "alice", 2)
    cancelled.cancel()
    # Before the cancelled task runs.
    first.give_back()
    await last
    assert cancelled.cancelled()
    assert budget.used == 2


async def test_a_cancelled_request_does_not_block_the_next_one() -> None:
    budget = Budget(10)
    with budget.share() as first:
        first.grow(5)
        small = budget.share()
        cancelled = asyncio.create_task(budget.share().wait(9))
        next_one = asyncio.create_task(small.wait(4))
        await asyncio.sleep(0)
        cancelled.cancel()
        await asyncio.wait_for(next_one, 5)
        assert budget.used == 9
        small.give_back()
    assert cancelled.cancelled()
    assert budget.used == 0


async def test_bytes_granted_to_a_cancelled_request_are_released() -> None:
    budget = Budget(10)
    first = budget.share()
    first.grow(10)
    cancelled = asyncio.create_task(budget.share().wait(10))
    await asyncio.sleep(0)
    # The bytes are granted now, but the task has not run yet.
    first.give_back()
    cancelled.cancel()
    await asyncio.gather(cancelled, return_exceptions=True)
    assert budget.used == 0
