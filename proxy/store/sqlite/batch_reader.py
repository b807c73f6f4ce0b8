"""Reads the database file in one thread.

To hand work to a thread and back costs more than a small query. So all queries of one turn of the
event loop are handed over together, and so are those that arrive while the thread is busy.
"""

import asyncio
import sqlite3
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, NamedTuple, TypeVar

from proxy.store.sqlite.writer import FILE_ERRORS

# Queries that are handed over together: the first one waits for the result of the last one.
BATCH_MAX_QUERIES = 32

T = TypeVar("T")


class Query(NamedTuple):
    """A query that waits for the thread, and the future of its result."""

    run: Callable[[sqlite3.Connection], Any]
    future: asyncio.Future[Any]


class Result(NamedTuple):
    """The result of a query, or its error."""

    value: Any
    error: BaseException | None = None


class BatchReader:
    """Runs queries on a connection, in their order.

    `pool` has one thread, and is shut down after `close`.
    """

    def __init__(self, db: sqlite3.Connection, pool: ThreadPoolExecutor) -> None:
        self._db = db
        self._pool = pool
        self._loop = asyncio.get_running_loop()
        self._waiting: deque[Query] = deque()
        # Set while no query waits or runs.
        self._idle = asyncio.Event()
        self._idle.set()

    async def read(self, query: Callable[[sqlite3.Connection], T]) -> T:
        """Return the result of a query, or raise its error."""
        future: asyncio.Future[T] = self._loop.create_future()
        self._waiting.append(Query(query, future))
        if self._idle.is_set():
            self._idle.clear()
            self._loop.call_soon(self._start)
        return await future

    async def close(self) -> None:
        """Wait until all queries have ended."""
        await self._idle.wait()

    def _start(self) -> None:
        size = min(len(self._waiting), BATCH_MAX_QUERIES)
        batch = [self._waiting.popleft() for _ in range(size)]
        running = self._loop.run_in_executor(self._pool, _run, self._db, batch)
        running.add_done_callback(partial(self._end, batch))

    def _end(self, batch: Sequence[Query], done: asyncio.Future[Sequence[Result]]) -> None:
        bug = done.exception()
        results = [Result(None, bug)] * len(batch) if bug is not None else done.result()
        for query, result in zip(batch, results, strict=True):
            if query.future.done():
                # Its reader was cancelled.
                continue
            if result.error is None:
                query.future.set_result(result.value)
            else:
                query.future.set_exception(result.error)
        if self._waiting:
            self._start()
        else:
            self._idle.set()


def _run(db: sqlite3.Connection, batch: Sequence[Query]) -> Sequence[Result]:
    results = []
    for query in batch:
        try:
            results.append(Result(None if query.future.cancelled() else query.run(db)))
        except FILE_ERRORS as error:
            results.append(Result(None, error))
    return results
