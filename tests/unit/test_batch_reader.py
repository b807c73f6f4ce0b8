"""Queries of one turn of the event loop are handed to the reading thread together."""

import asyncio
import sqlite3
import threading
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing

import pytest
import pytest_asyncio

from proxy.store.sqlite.reads import BATCH_MAX_QUERIES, BatchReader


@pytest_asyncio.fixture
async def reader() -> AsyncIterator[BatchReader]:
    with (
        closing(sqlite3.connect(":memory:", check_same_thread=False)) as db,
        ThreadPoolExecutor(1) as pool,
    ):
        made = BatchReader(db, pool)
        yield made
        await made.close()


async def test_each_caller_gets_its_own_result_or_error(reader: BatchReader) -> None:
    def answer(number: int) -> int:
        if number % 3 == 0:
            raise sqlite3.OperationalError(number)
        return number

    numbers = range(3 * BATCH_MAX_QUERIES)
    results = await asyncio.gather(
        *(reader.read(lambda _, number=number: answer(number)) for number in numbers),
        return_exceptions=True,
    )
    for number, result in zip(numbers, results, strict=True):
        if number % 3:
            assert result == number
        else:
            assert isinstance(result, sqlite3.OperationalError)
            assert result.args == (number,)


async def test_queries_run_in_their_order_in_one_thread(reader: BatchReader) -> None:
    seen = []
    for batch in range(3):
        await asyncio.gather(
            *(
                reader.read(lambda _, at=(batch, number): seen.append((at, threading.get_ident())))
                for number in range(BATCH_MAX_QUERIES + 1)
            )
        )
    assert [at for at, _ in seen] == sorted(at for at, _ in seen)
    assert len({thread for _, thread in seen} | {threading.get_ident()}) == 2


async def test_a_cancelled_caller_does_not_affect_others(reader: BatchReader) -> None:
    is_running = asyncio.Event()
    may_end = threading.Event()
    loop = asyncio.get_running_loop()

    def hold(_: sqlite3.Connection) -> str:
        loop.call_soon_threadsafe(is_running.set)
        may_end.wait(10)
        return "held"

    held = asyncio.create_task(reader.read(hold))
    await is_running.wait()
    ran = []
    late = [
        asyncio.create_task(reader.read(lambda _, number=number: ran.append(number)))
        for number in range(3)
    ]
    await asyncio.sleep(0)
    held.cancel()
    late[1].cancel()
    await asyncio.sleep(0)
    may_end.set()
    await asyncio.gather(*late, return_exceptions=True)
    assert ran == [0, 2]
    with pytest.raises(asyncio.CancelledError):
        await held


async def test_a_bug_in_a_query_reaches_its_caller(reader: BatchReader) -> None:
    def fail(_: sqlite3.Connection) -> None:
        raise KeyError("a bug")

    with pytest.raises(KeyError):
        await reader.read(fail)
    assert await reader.read(lambda _: 1) == 1


async def test_close_waits_for_all_queries(reader: BatchReader) -> None:
    ran = []
    reading = [
        asyncio.create_task(reader.read(lambda _, number=number: ran.append(number)))
        for number in range(2 * BATCH_MAX_QUERIES + 1)
    ]
    await asyncio.sleep(0)
    await reader.close()
    assert len(ran) == len(reading)
    await asyncio.gather(*reading)
