"""Counts what a request costs."""

import asyncio
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def counted_tasks() -> Iterator[Counter[str]]:
    """Count the tasks that are created, by the name of their coroutine."""
    loop = asyncio.get_running_loop()
    created: Counter[str] = Counter()

    def factory(loop: asyncio.AbstractEventLoop, work: Any, **more: Any) -> asyncio.Task[Any]:
        created[work.__qualname__] += 1
        return asyncio.Task(work, loop=loop, **more)

    loop.set_task_factory(factory)
    try:
        yield created
    finally:
        loop.set_task_factory(None)
