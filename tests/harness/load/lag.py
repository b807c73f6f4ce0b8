"""The lag of an event loop: a task that should run every millisecond records its longest delay."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass

STEP_SECONDS = 0.001


@dataclass(slots=True)
class Lag:
    """The longest delay of a task that was ready to run, in seconds."""

    longest: float = 0.0


@asynccontextmanager
async def watching() -> AsyncIterator[Lag]:
    """Watch this event loop, in which the proxy under test also runs."""
    lag = Lag()
    watcher = asyncio.create_task(_watch(lag))
    try:
        yield lag
    finally:
        watcher.cancel()
        with suppress(asyncio.CancelledError):
            await watcher


async def _watch(lag: Lag) -> None:
    loop = asyncio.get_running_loop()
    while True:
        due = loop.time() + STEP_SECONDS
        await asyncio.sleep(STEP_SECONDS)
        lag.longest = max(lag.longest, loop.time() - due)
