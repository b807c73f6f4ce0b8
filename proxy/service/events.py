"""Who waits for news of a job: its status, or its output. A hint only; whoever hears it reads the store."""

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from proxy.jobs.model import JobId


class Subscription:
    """One that waits."""

    def __init__(self) -> None:
        self._event = asyncio.Event()

    def notify(self) -> None:
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


class JobEvents:
    """The followers of jobs."""

    def __init__(self) -> None:
        # dict, not set: sets of objects iterate in the order of memory addresses
        self._subscriptions: dict[JobId, dict[Subscription, None]] = {}

    def __len__(self) -> int:
        return sum(map(len, self._subscriptions.values()))

    @contextmanager
    def subscribe(self, job_id: JobId) -> Iterator[Subscription]:
        """Follow a job for as long as the context lasts."""
        subscription = Subscription()
        self._subscriptions.setdefault(job_id, {})[subscription] = None
        try:
            yield subscription
        finally:
            others = self._subscriptions[job_id]
            del others[subscription]
            if not others:
                del self._subscriptions[job_id]

    def notify(self, job_id: JobId) -> None:
        """Something about this job changed."""
        for subscription in self._subscriptions.get(job_id, ()):
            subscription.notify()

    def notify_all(self) -> None:
        """Nobody need wait any longer."""
        for job_id in self._subscriptions:
            self.notify(job_id)
