"""A poll that is held open until there is something to say."""

import asyncio
from typing import Any

from proxy.jobs.model import Job


class Poll:
    """One `job-take` or `job-stop` that waits for its answer."""

    def __init__(self, room: int = 0) -> None:
        self.room = room  # jobs that it may still be given
        self.jobs: list[Job] = []
        self.size = 0  # bytes of their bodies
        self.is_replaced = False
        self._ready = asyncio.Event()

    def give(self, job: Job) -> None:
        """A job for it. What else is given in this turn of the event loop goes with it."""
        self.jobs.append(job)
        self.size += len(job.submission.work.body)
        self.room -= 1
        self._ready.set()

    def end(self) -> None:
        """Answer it now."""
        self._ready.set()

    async def wait(self, seconds: float, receive: Any) -> bool:
        """Wait until it is to be answered. False when the other end has gone: an answer would reach nobody."""
        gone = asyncio.ensure_future(_gone(receive))
        ready = asyncio.ensure_future(self._ready.wait())
        try:
            await asyncio.wait({gone, ready}, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
            return not gone.done()
        finally:
            gone.cancel()
            ready.cancel()


async def _gone(receive: Any) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
