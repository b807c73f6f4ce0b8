"""Who waits for news of a job: its status, or its output. A hint only; whoever hears it reads the store."""

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from proxy.jobs.model import JobId


class Follower:
    """One that waits."""

    def __init__(self) -> None:
        self._event = asyncio.Event()

    def tell(self) -> None:
        """There is something to read."""
        self._event.set()

    async def wait(self, seconds: float) -> bool:
        """Wait for news since the last wait (true), or so long. Read after it, not before."""
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._event.wait()
        heard = self._event.is_set()
        self._event.clear()
        return heard


class News:
    """The followers of jobs."""

    def __init__(self) -> None:
        # dict, not set: sets of objects iterate in the order of memory addresses
        self._followers: dict[JobId, dict[Follower, None]] = {}

    def __len__(self) -> int:
        return sum(map(len, self._followers.values()))

    @contextmanager
    def follow(self, job_id: JobId) -> Iterator[Follower]:
        """Follow a job for as long as the context lasts."""
        follower = Follower()
        self._followers.setdefault(job_id, {})[follower] = None
        try:
            yield follower
        finally:
            others = self._followers[job_id]
            del others[follower]
            if not others:
                del self._followers[job_id]

    def tell(self, job_id: JobId) -> None:
        """Something about this job changed."""
        for follower in self._followers.get(job_id, ()):
            follower.tell()

    def tell_all(self) -> None:
        """Nobody need wait any longer."""
        for job_id in self._followers:
            self.tell(job_id)
