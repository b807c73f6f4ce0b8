"""A client that means no harm, and how long it waits while others do."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field

import aiohttp

PAUSE_SECONDS = 0.02


@dataclass(slots=True)
class Waits:
    """What a client was answered, and after how many seconds."""

    statuses: set[int] = field(default_factory=set)
    seconds: list[float] = field(default_factory=list)

    def p99(self) -> float:
        """The wait that one in a hundred exceeds."""
        return sorted(self.seconds)[int(len(self.seconds) * 0.99)]


@asynccontextmanager
async def healthy(url: str, path: str = "/v1/models") -> AsyncIterator[Waits]:
    """Ask again and again, each time on a connection of its own."""
    waits, loop = Waits(), asyncio.get_running_loop()

    async def ask() -> None:
        async with aiohttp.ClientSession(url, connector=aiohttp.TCPConnector(force_close=True)) as http:
            while True:
                began = loop.time()
                async with http.get(path) as response:
                    await response.read()
                waits.statuses.add(response.status)
                waits.seconds.append(loop.time() - began)
                await asyncio.sleep(PAUSE_SECONDS)

    asking = asyncio.create_task(ask())
    try:
        yield waits
    finally:
        failed = asking.done() and asking.exception()
        asking.cancel()
        with suppress(asyncio.CancelledError):
            await asking
        assert not failed, failed
