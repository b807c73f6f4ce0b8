"""Work that nobody waits for, with a parent all the same: it ends with the proxy, and its failures are told."""

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any

import structlog

from proxy.store.base import StoreFullError

log = structlog.get_logger()

AGAIN_SECONDS = 1.0  # after which what could not be written, or broke, is tried again


class Background:
    """Tasks of the proxy."""

    def __init__(self) -> None:
        # dict, not set: sets of objects iterate in the order of memory addresses
        self._tasks: dict[asyncio.Task[None], None] = {}

    def start(self, work: Coroutine[Any, Any, None], name: str) -> None:
        """Do this beside everything else."""
        task = asyncio.create_task(self._run(work, name), name=name)
        self._tasks[task] = None
        task.add_done_callback(self._tasks.pop)

    async def finish(self, seconds: float) -> None:
        """Wait until all is done; what is not done by then is ended."""
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=seconds)
        for task in tuple(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _run(self, work: Coroutine[Any, Any, None], name: str) -> None:
        try:
            await work
        except Exception:  # a bug of ours: the log gets it, the rest goes on
            log.exception("background.broke", task=name)


async def keep(serve: Callable[[], Awaitable[None]], name: str) -> None:
    """Have a loop of the proxy go on, whatever happens in it: a job can be lost by that, but not an endpoint."""
    while True:
        try:
            await serve()
        except StoreFullError:
            log.error("store.full", loop=name)  # noqa: TRY400 - where it was raised tells nothing
        except (
            Exception
        ):  # a bug of ours: the log gets it, and the loop goes on with the next thing
            log.exception("loop.broke", loop=name)
        await asyncio.sleep(AGAIN_SECONDS)


async def insist(write: Callable[[], Awaitable[None]]) -> None:
    """Do something that has to be written, as soon as there is room for it."""
    while True:
        try:
            return await write()
        except StoreFullError:
            await asyncio.sleep(AGAIN_SECONDS)
