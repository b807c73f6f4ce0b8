"""Waiting for a condition that another task or process fulfils."""

import asyncio
from collections.abc import Awaitable, Callable
from inspect import isawaitable

POLL_SECONDS = 0.02


async def until(
    holds: Callable[[], bool | Awaitable[bool]], seconds: float = 10.0, what: str = ""
) -> None:
    """Poll the condition `holds` until it is True; fail after `seconds` with the text `what`."""
    loop = asyncio.get_running_loop()
    deadline = loop.time() + seconds
    while True:
        found = holds()
        if isawaitable(found):
            found = await found
        if found:
            return
        assert loop.time() < deadline, f"not within {seconds} s: {what or holds}"
        await asyncio.sleep(POLL_SECONDS)
