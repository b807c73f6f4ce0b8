"""Bytes that requests share."""

import asyncio

import pytest

from proxy.access.body_budget import Budget, BudgetError


def test_what_is_not_there_is_refused_and_changes_nothing() -> None:
    budget = Budget(10)
    with budget.share() as share:
        share.grow(7)
        with pytest.raises(BudgetError):
            share.grow(4)
        share.grow(3)
        assert budget.used == 10
    assert budget.used == 0


def test_a_share_is_given_back_once() -> None:
    budget = Budget(10)
    with budget.share() as share:
        share.grow(7)
        share.give_back()
        assert budget.used == 0
    assert budget.used == 0


def test_no_holder_has_more_than_its_part() -> None:
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


async def test_those_who_wait_have_their_turn_in_order() -> None:
    budget, order = Budget(10), list[int]()

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
            late.grow(1)  # it would be there, but others came first
    await asyncio.gather(*waiting)
    assert order == [0, 1, 2, 3]
    assert budget.used == 0


async def test_one_that_waits_no_longer_keeps_nobody_waiting() -> None:
    budget = Budget(10)
    with budget.share() as first:
        first.grow(5)
        big, small = budget.share(), budget.share()
        gone, next_one = asyncio.create_task(big.wait(9)), asyncio.create_task(small.wait(4))
        await asyncio.sleep(0)
        gone.cancel()
        await asyncio.wait_for(next_one, 5)
        assert budget.used == 9
        small.give_back()
    assert gone.cancelled()
    assert budget.used == 0


async def test_one_that_is_cancelled_in_its_turn_takes_nothing_with_it() -> None:
    budget = Budget(10)
    first = budget.share()
    first.grow(10)
    gone = asyncio.create_task(budget.share().wait(10))
    await asyncio.sleep(0)
    first.give_back()  # its turn has come, but it has not run yet
    gone.cancel()
    await asyncio.gather(gone, return_exceptions=True)
    assert budget.used == 0
