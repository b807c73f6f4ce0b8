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

from proxy.delivery.guard import receiver
from proxy.delivery.sender import Sender
from proxy.delivery.signature import message_id
from proxy.jobs.model import Delivery, Job, JobId
from proxy.jobs.policy import TRY_AGAIN, after_try
from proxy.service.background import Background
from proxy.service.clock import Clock
from proxy.service.news import Follower
from proxy.store.base import JobStore, StoreFullError

log = structlog.get_logger()

TICK_SECONDS = 0.25
MOST = 64  # deliveries at once
MOST_OF_RECEIVER = 4  # of them to one host: one that is slow takes nothing from the others
MOST_KNOWN = 1_024  # that are due, of which some wait for their receiver's others
MOST_BYTES = 64 * 1024 * 1024  # of bodies at once; the last one may go beyond

Render: TypeAlias = Callable[[Job], Awaitable[bytes]]
"""What a receiver is told about a job that has ended."""


class Deliveries:
    """Tells receivers about the ends of jobs."""

    def __init__(
        self,
        store: JobStore,
        sender: Sender,
        render: Render,
        clock: Clock,
        *,
        most: int = MOST,
        most_of_receiver: int = MOST_OF_RECEIVER,
        most_bytes: int = MOST_BYTES,
    ) -> None:
        self._store, self._sender, self._render, self._clock = store, sender, render, clock
        self._most, self._most_of_receiver, self._most_bytes = most, most_of_receiver, most_bytes
        self._news, self._running, self._is_open = Follower(), Background(), True
        self._waiting: dict[JobId, Delivery] = {}
        self._busy: dict[JobId, str] = {}  # and the host that it goes to
        self._ended: list[JobId] = []
        self._looked_at = float("-inf")
        self._memory, self._bytes = asyncio.Condition(), 0

    def wake(self) -> None:
        """A delivery may be due."""
        self._news.tell()

    async def serve(self) -> None:
        """Deliver for ever."""
        async with self._sender.session() as session:
            try:
                while self._is_open:
                    await self._look(session)
                    await self._news.wait(TICK_SECONDS)
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
        known = len(self._busy) + len(self._waiting)
        if self._waiting and (now < self._looked_at + TICK_SECONDS or known >= MOST_KNOWN):
            return
        if len(self._busy) < self._most:
            self._looked_at = now
            due = await self._store.deliveries(self._clock.now(), known + self._most)
            self._waiting = {one.job.id: one for one in due if one.job.id not in self._busy}
            self._begin(session)

    def _begin(self, session: ClientSession) -> None:
        """Begin what may begin, the earliest first."""
        busy = Counter(self._busy.values())
        for job_id, delivery in list(self._waiting.items()):
            if len(self._busy) >= self._most or not self._is_open:
                return
            host = receiver(delivery.job.submission.webhook or "").partition("://")[2]
            if busy[host] < self._most_of_receiver:
                busy[host] += 1
                self._busy[job_id] = host
                del self._waiting[job_id]
                self._running.start(self._deliver(session, delivery), f"delivery {job_id}")

    async def _deliver(self, session: ClientSession, delivery: Delivery) -> None:
        try:
            job = await self._store.find(delivery.job.id)
            if job is not None and job.is_terminal and job.retries == delivery.job.retries:
                await self._try(session, delivery, job)
        finally:
            self._ended.append(delivery.job.id)
            self.wake()

    async def _try(self, session: ClientSession, delivery: Delivery, job: Job) -> None:
        webhook = job.submission.webhook or ""
        try:
            why = await self._send(session, webhook, job)
        except Exception:  # a bug of ours: it counts as a try, so that it ends
            log.exception("delivery.broke", job=job.id)
            why = "internal error"
        again_at = None if why is None else after_try(delivery, self._clock.now())
        told = {"job": job.id, "receiver": receiver(webhook), "tries": delivery.tries + 1}
        if why is None:
            log.debug("delivery.done", **told)
        elif again_at is None:
            log.warning("delivery.gave_up", **told, why=why)
        else:
            log.debug("delivery.failed", **told, why=why)
        try:
            await self._store.tried(delivery, again_at)
        except StoreFullError:
            log.warning("delivery.not_noted", **told)
            await asyncio.sleep(TRY_AGAIN / 1000)  # it is due still: not again at once

    async def _send(self, session: ClientSession, webhook: str, job: Job) -> str | None:
        async with self._memory:
            await self._memory.wait_for(lambda: self._bytes < self._most_bytes)
            body = await self._render(job)
            self._bytes += len(body)
        try:
            return await self._sender.send(session, webhook, message_id(job), body)
        finally:
            async with self._memory:
                self._bytes -= len(body)
                self._memory.notify()
