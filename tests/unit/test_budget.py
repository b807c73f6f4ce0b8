"""The memory budget of request bodies."""

import asyncio

import pytest

from proxy.access.limits import Budget, BudgetError


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
