"""Waiting for something that another process does."""

import asyncio
from collections.abc import Awaitable, Callable
from inspect import isawaitable

LOOK_SECONDS = 0.02


async def until(
    holds: Callable[[], bool | Awaitable[bool]], seconds: float = 10.0, what: str = ""
) -> None:
    """Look until it holds; fail when it does not within so many seconds."""
    loop = asyncio.get_running_loop()
    deadline = loop.time() + seconds
    while True:
        found = holds()
        if isawaitable(found):
            found = await found
        if found:
            return
        assert loop.time() < deadline, f"not within {seconds} s: {what or holds}"
        await asyncio.sleep(LOOK_SECONDS)
