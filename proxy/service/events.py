"""Notifications that a job's status or output has changed. They are hints: the subscriber reads the
store.
"""

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from proxy.jobs.model import JobId


class Subscription:
    """A caller that waits for changes of one job."""

    def __init__(self) -> None:
        self._event = asyncio.Event()

    def notify(self) -> None:
        """Wake the caller."""
        self._event.set()

    async def wait(self, seconds: float) -> bool:
        """Wait up to `seconds` for a change since the last wait; return True if there was one.

        Read the store after waiting and not before, so that no change is missed.
        """
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._event.wait()
        was_notified = self._event.is_set()
        self._event.clear()
        return was_notified


class JobEvents:
    """The subscriptions of all jobs."""

    def __init__(self) -> None:
        # A dict, because sets of objects iterate in the order of memory addresses.
        self._subscriptions: dict[JobId, dict[Subscription, None]] = {}

    def __len__(self) -> int:
        return sum(map(len, self._subscriptions.values()))

    @contextmanager
    def subscribe(self, job_id: JobId) -> Iterator[Subscription]:
        """Subscribe to a job while the context lasts."""
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
        """Wake the subscribers of a job."""
        for subscription in self._subscriptions.get(job_id, ()):
            subscription.notify()

    def notify_all(self) -> None:
        """Wake all subscribers: the proxy shuts down."""
        for job_id in self._subscriptions:
            self.notify(job_id)
