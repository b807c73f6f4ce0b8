"""The contract of `Signal`: no wake is lost between two waits."""

import asyncio

from proxy.service.ports import Signal


async def test_a_wake_ends_a_wait(signal: Signal) -> None:
    waiting = asyncio.create_task(signal.wait("a", 10))
    await asyncio.sleep(0)
    signal.wake("a")
    assert await waiting


async def test_a_wake_before_the_wait_is_remembered_once(signal: Signal) -> None:
    signal.wake("a")
    signal.wake("a")
    assert await signal.wait("a", 10)
    assert not await signal.wait("a", 0.01)


async def test_a_wake_ends_all_waits(signal: Signal) -> None:
    waiting = [asyncio.create_task(signal.wait("a", 10)) for _ in range(3)]
    await asyncio.sleep(0)
    signal.wake("a")
    assert await asyncio.gather(*waiting) == [True, True, True]


async def test_keys_are_independent(signal: Signal) -> None:
    signal.wake("b")
    assert not await signal.wait("a", 0.01)


async def test_a_cancelled_wait_does_not_consume_a_wake(signal: Signal) -> None:
    waiting = asyncio.create_task(signal.wait("a", 10))
    await asyncio.sleep(0)
    waiting.cancel()
    await asyncio.gather(waiting, return_exceptions=True)
    signal.wake("a")
    assert await signal.wait("a", 0.01)
