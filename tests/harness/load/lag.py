"""How long an event loop stands still: a task that wants to run every millisecond, and notes the longest wait."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass

STEP_SECONDS = 0.001


@dataclass(slots=True)
class Lag:
    """The longest that a task that could run had to wait, in seconds."""

    longest: float = 0.0


@asynccontextmanager
async def watching() -> AsyncIterator[Lag]:
    """Watch this event loop, in which the proxy of a test runs too."""
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
