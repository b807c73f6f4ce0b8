"""Notifications within one process: of changes of a job (`JobEvents`), and of a queue
(`LocalSignal`). They are hints: the notified task reads the state.
"""

import asyncio
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from proxy.jobs.model import JobId


class Subscription:
    """A caller that waits for changes of one job, or only for its end."""

    def __init__(self, *, only_end: bool = False) -> None:
        self.only_end = only_end
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
    def subscribe(self, job_id: JobId, *, only_end: bool = False) -> Iterator[Subscription]:
        """Subscribe to a job while the context lasts; `only_end`: not to its progress."""
        subscription = Subscription(only_end=only_end)
        self._subscriptions.setdefault(job_id, {})[subscription] = None
        try:
            yield subscription
        finally:
            others = self._subscriptions[job_id]
            del others[subscription]
            if not others:
                del self._subscriptions[job_id]

    def notify(self, job_id: JobId) -> None:
        """Wake the subscribers of a job: it may have ended."""
        for subscription in self._subscriptions.get(job_id, ()):
            subscription.notify()

    def notify_progress(self, job_id: JobId) -> None:
        """Wake the subscribers of a job that has a new status or new output, and has not ended."""
        for subscription in self._subscriptions.get(job_id, ()):
            if not subscription.only_end:
                subscription.notify()

    def notify_all(self) -> None:
        """Wake all subscribers: the proxy shuts down."""
        for job_id in self._subscriptions:
            self.notify(job_id)


class LocalSignal:
    """`Signal` between the tasks of one event loop."""

    def __init__(self) -> None:
        self._woken: set[str] = set()
        # A dict instead of a set: a set of objects iterates in the order of memory addresses.
        self._waiting: defaultdict[str, dict[asyncio.Future[None], None]] = defaultdict(dict)

    def wake(self, key: str) -> None:
        waiting = self._waiting.pop(key, None)
        if not waiting:
            self._woken.add(key)
            return
        for future in waiting:
            if not future.done():
                future.set_result(None)

    async def wait(self, key: str, seconds: float | None) -> bool:
        if key in self._woken:
            self._woken.discard(key)
            return True
        future = asyncio.get_running_loop().create_future()
        self._waiting[key][future] = None
        try:
            async with asyncio.timeout(seconds):
                await future
        except TimeoutError:
            return False
        finally:
            if (waiting := self._waiting.get(key)) is not None:
                waiting.pop(future, None)
                if not waiting:
                    del self._waiting[key]
        return True
