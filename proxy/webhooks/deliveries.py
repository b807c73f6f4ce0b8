"""Carries out the deliveries that the store has. What counts is in the store alone: a delivery stays there until its
receiver has acknowledged it or it is given up, so a proxy that ends in the middle tells its receivers again.

The loop alone changes what is busy. A delivery that has ended is let go before the next look into the store and not
during one, so that no look can bring it back as it was.
"""

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable
from typing import TypeAlias

import structlog
from aiohttp import ClientSession

from proxy.access.encryption import OtherSealError
from proxy.jobs.model import Delivery, Job, JobId, Millis
from proxy.jobs.policy import TRY_AGAIN, after_try
from proxy.jobs.webhook import receiver
from proxy.service.background import Background
from proxy.service.clock import Clock
from proxy.service.events import Subscription
from proxy.store.base import JobStore, StoreFullError
from proxy.webhooks.sender import Sender
from proxy.webhooks.signature import message_id

log = structlog.get_logger()

TICK_SECONDS = 0.25
MOST = 64  # deliveries at once
MOST_OF_RECEIVER = 4  # of them: one that is slow takes nothing from the others
MOST_BYTES = 64 * 1024 * 1024  # of bodies at once; the last one may go beyond

Render: TypeAlias = Callable[[Job], Awaitable[bytes]]
"""What a receiver is told about a job that has ended."""
OpenWebhook: TypeAlias = Callable[[str], str]
"""The URL of a webhook, of what is kept of it; `OtherSealError` if nobody can read it any more."""


class Deliveries:
    """Tells receivers about the ends of jobs."""

    def __init__(
        self,
        store: JobStore,
        sender: Sender,
        render: Render,
        clock: Clock,
        *,
        open_webhook: OpenWebhook = str,  # it is kept as it is
        most: int = MOST,
        most_of_receiver: int = MOST_OF_RECEIVER,
        most_bytes: int = MOST_BYTES,
    ) -> None:
        self._store, self._sender, self._render, self._clock = store, sender, render, clock
        self._open_webhook = open_webhook
        self._most, self._most_of_receiver, self._most_bytes = most, most_of_receiver, most_bytes
        self._events, self._running, self._is_open = Subscription(), Background(), True
        self._waiting: dict[JobId, Delivery] = {}
        self._busy: dict[JobId, str] = {}  # and whom it goes to
        self._ended: list[JobId] = []
        self._looked_at = float("-inf")
        self._memory, self._bytes = asyncio.Condition(), 0

    def wake(self) -> None:
        """A delivery may be due."""
        self._events.notify()

    async def serve(self) -> None:
        """Deliver for ever."""
        async with self._sender.session() as session:
            try:
                while self._is_open:
                    await self._look(session)
                    await self._events.wait(TICK_SECONDS)
            finally:
                await self._running.finish(0)

    async def drain(self, seconds: float) -> None:
        """Begin no more; those that run get so long. What is not delivered stays in the store."""
        self._is_open = False
        await self._running.finish(seconds)

    async def _look(self, session: ClientSession) -> None:
        for job_id in self._ended:
            del self._busy[job_id]
        self._ended.clear()
        self._begin(session)
        now = asyncio.get_running_loop().time()
        if self._waiting and now < self._looked_at + TICK_SECONDS:
            return  # each look is a search in the store: as long as there is something to do, a few a second will do
        self._looked_at = now
        while len(self._busy) < self._most and self._is_open:
            crowded = {
                one
                for one, number in Counter(self._busy.values()).items()
                if number >= self._most_of_receiver
            }
            limit = self._most + len(self._busy)
            due = await self._store.deliveries(self._clock.now(), limit, besides=crowded)
            fresh = {one.job.id: one for one in due if one.job.id not in self._busy}
            if not fresh:
                break
            self._waiting |= fresh
            self._begin(session)

    def _begin(self, session: ClientSession) -> None:
        """Begin what may begin, the earliest first. What waits after that waits for a receiver's others, or for all."""
        busy = Counter(self._busy.values())
        for job_id, delivery in list(self._waiting.items()):
            if len(self._busy) >= self._most or not self._is_open:
                return
            who = receiver(delivery.job.submission.webhook)
            if busy[who] < self._most_of_receiver:
                busy[who] += 1
                self._busy[job_id] = who
                del self._waiting[job_id]
                self._running.start(self._deliver(session, delivery), f"delivery {job_id}")

    async def _deliver(self, session: ClientSession, delivery: Delivery) -> None:
        try:
            why = await self._tell(session, delivery)
            again_at = None if why is None else after_try(delivery, self._clock.now())
            self._log(delivery, why, again_at)
            await self._note(delivery, again_at)
        finally:
            self._ended.append(delivery.job.id)
            self.wake()

    async def _tell(self, session: ClientSession, delivery: Delivery) -> str | None:
        """One try; None when there is nothing left to tell, else why it failed."""
        try:
            webhook = self._open_webhook(delivery.job.submission.webhook or "")
            async with self._memory:
                await self._memory.wait_for(lambda: self._bytes < self._most_bytes)
                body = await self._body(delivery)
                self._bytes += len(body)
            try:
                return (
                    await self._sender.send(session, webhook, message_id(delivery.job), body)
                    if body
                    else None
                )
            finally:
                async with self._memory:
                    self._bytes -= len(body)
                    self._memory.notify()
        except OtherSealError as error:
            return str(error)
        except Exception:  # a bug of ours: it counts as a try, so that it ends
            log.exception("delivery.broke", job=delivery.job.id)
            return "internal error"

    async def _body(self, delivery: Delivery) -> bytes:
        """What is told; empty when the job was retried meanwhile, which takes its delivery back."""
        job = await self._store.find(delivery.job.id)
        return (
            b""
            if job is None or job.retry_count != delivery.job.retry_count
            else await self._render(job)
        )

    async def _note(self, delivery: Delivery, again_at: Millis | None) -> None:
        try:
            await self._store.tried(delivery, again_at)
        except StoreFullError:
            log.warning("delivery.not_noted", job=delivery.job.id)
            await asyncio.sleep(TRY_AGAIN / 1000)  # it is due still: not again at once

    def _log(self, delivery: Delivery, why: str | None, again_at: Millis | None) -> None:
        job, tries = delivery.job, delivery.tries + 1
        who = receiver(job.submission.webhook)
        if why is None:
            log.debug("delivery.done", job=job.id, receiver=who, tries=tries)
        elif again_at is None:
            log.warning("delivery.gave_up", job=job.id, receiver=who, tries=tries, why=why)
        else:
            log.debug("delivery.failed", job=job.id, receiver=who, tries=tries, why=why)
