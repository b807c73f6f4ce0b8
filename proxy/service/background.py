"""Background tasks with a parent: they end with the proxy, and their failures are logged."""

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from contextlib import suppress
from typing import Any, TypeVar

import structlog

from proxy.store.errors import StoreBusyError, StoreError, StoreFullError, StoreGoneError

log = structlog.get_logger()

T = TypeVar("T")

# The pause before a failed write or a failed loop is tried again.
RETRY_SECONDS = 1.0
# The first pause of a repeated write; it doubles up to `RETRY_SECONDS`.
RETRY_MIN_SECONDS = 0.05


class Background:
    """The background tasks of the proxy."""

    def __init__(self) -> None:
        # A dict, because sets of objects iterate in the order of memory addresses.
        self._tasks: dict[asyncio.Task[bool], None] = {}

    def start(self, work: Coroutine[Any, Any, object], name: str) -> asyncio.Task[bool]:
        """Run a coroutine as a task of its own, and return it. It does not raise; its result is
        False if the work has failed.
        """
        task = asyncio.create_task(_run(work, name), name=name)
        self._tasks[task] = None
        task.add_done_callback(self._tasks.pop)
        return task

    async def finish(self, seconds: float) -> None:
        """Wait up to `seconds` for all tasks to end, then cancel the rest."""
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=seconds)
        for task in tuple(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)


async def keep(serve: Callable[[], Awaitable[None]], name: str) -> None:
    """Run an endless loop, and start it again if it fails: an error can cost one job, but not an
    endpoint. It ends when the store is gone.
    """
    with suppress(StoreGoneError):
        while True:
            await _logged(serve(), "loop.broke", loop=name)
            await asyncio.sleep(RETRY_SECONDS)


async def _run(work: Awaitable[object], name: str) -> bool:
    try:
        return await _logged(work, "background.broke", task=name)
    except StoreGoneError:
        return False


async def _logged(work: Awaitable[object], event: str, **fields: str) -> bool:
    """Await a task's work. A failure is logged as `event`, everything else continues, and the
    result is False.

    Raises `StoreGoneError`, which is logged elsewhere, once and with its reason.
    """
    try:
        await work
    except StoreGoneError:
        raise
    except StoreError as error:
        # A traceback would add nothing.
        log.error("store.failed", why=str(error), **fields)  # noqa: TRY400
    except Exception:
        # A bug of ours.
        log.exception(event, **fields)
    else:
        return True
    return False


async def insist(call: Callable[[], Awaitable[T]]) -> T:
    """Repeat a call of the store, with the same data, until the store has carried it out; return
    its result.

    Raises `StoreGoneError`.
    """
    pause = RETRY_MIN_SECONDS
    while True:
        try:
            return await call()
        except (StoreFullError, StoreBusyError):
            await asyncio.sleep(pause)
            pause = min(2 * pause, RETRY_SECONDS)
