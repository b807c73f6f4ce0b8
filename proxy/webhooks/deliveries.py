"""Send the webhooks that are due in the store (at-least-once delivery).

The state is in the store only: a delivery stays there until its receiver has acknowledged it or all
attempts have failed. A proxy that exits during a delivery therefore sends it again after its
restart.

Only the loop of `serve` changes the set of active deliveries. A finished delivery leaves the set
before the next query of the store, never during one, so that a query cannot return it in its old
state.
"""

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import TypeAlias

import structlog
from aiohttp import ClientSession

from proxy.access.encryption import OtherSealError
from proxy.jobs.model import Delivery, Job, JobId, Millis
from proxy.jobs.policy import DELIVERY_RETRY_MILLIS, after_try
from proxy.jobs.webhook import receiver
from proxy.service.background import Background
from proxy.service.clock import Clock
from proxy.service.events import Subscription
from proxy.store.base import JobStore, StoreError
from proxy.webhooks.sender import Sender
from proxy.webhooks.signature import message_id

log = structlog.get_logger()

POLL_SECONDS = 0.25
MAX_DELIVERIES = 64
# A slow receiver must not use the connections of the others.
MAX_DELIVERIES_PER_RECEIVER = 4
# The limit for the bodies of all active deliveries; the last one may exceed it.
MAX_BODY_BYTES = 64 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class DeliveryLimits:
    """The limits of active deliveries: in all, for each receiver, and of their bodies in bytes."""

    max_deliveries: int = MAX_DELIVERIES
    max_per_receiver: int = MAX_DELIVERIES_PER_RECEIVER
    max_body_bytes: int = MAX_BODY_BYTES


Render: TypeAlias = Callable[[Job], Awaitable[bytes]]
"""Returns the body of the webhook for a job that has ended."""
OpenWebhook: TypeAlias = Callable[[str], str]
"""Decrypts a stored webhook URL. Raises OtherSealError if the key in use does not fit."""


class Deliveries:
    """Delivers the webhooks of jobs that have ended."""

    def __init__(
        self,
        store: JobStore,
        sender: Sender,
        render: Render,
        clock: Clock,
        open_webhook: OpenWebhook = str,
        limits: DeliveryLimits | None = None,
    ) -> None:
        self._store = store
        self._sender = sender
        self._render = render
        self._clock = clock
        self._open_webhook = open_webhook
        self._limits = limits or DeliveryLimits()
        self._events = Subscription()
        self._running = Background()
        self._is_open = True
        self._waiting: dict[JobId, Delivery] = {}
        # The receiver of each active delivery.
        self._active: dict[JobId, str] = {}
        self._finished: list[JobId] = []
        self._queried_at = float("-inf")
        self._body_freed = asyncio.Condition()
        self._body_bytes = 0

    def wake(self) -> None:
        """Notify the loop that a delivery may be due."""
        self._events.notify()

    async def serve(self) -> None:
        """Deliver until `drain` is called or the task is cancelled."""
        async with self._sender.session() as session:
            try:
                while self._is_open:
                    await self._start_due(session)
                    await self._events.wait(POLL_SECONDS)
            finally:
                await self._running.finish(0)

    async def drain(self, seconds: float) -> None:
        """Start no new deliveries, and wait up to `seconds` for the active ones.

        A delivery that has not finished by then is cancelled and stays in the store.
        """
        self._is_open = False
        await self._running.finish(seconds)

    async def _start_due(self, session: ClientSession) -> None:
        for job_id in self._finished:
            del self._active[job_id]
        self._finished.clear()
        self._start_waiting(session)
        now = asyncio.get_running_loop().time()
        # Limit the rate of queries: as long as deliveries wait here, a few queries per second
        # suffice.
        if self._waiting and now < self._queried_at + POLL_SECONDS:
            return
        self._queried_at = now
        while len(self._active) < self._limits.max_deliveries and self._is_open:
            saturated = {
                name
                for name, number in Counter(self._active.values()).items()
                if number >= self._limits.max_per_receiver
            }
            limit = self._limits.max_deliveries + len(self._active)
            due = await self._store.deliveries(self._clock.now(), limit, besides=saturated)
            new = {one.job.id: one for one in due if one.job.id not in self._active}
            if not new:
                break
            self._waiting |= new
            self._start_waiting(session)

    def _start_waiting(self, session: ClientSession) -> None:
        """Start the waiting deliveries that the limits allow, the earliest first."""
        active = Counter(self._active.values())
        for job_id, delivery in list(self._waiting.items()):
            if len(self._active) >= self._limits.max_deliveries or not self._is_open:
                return
            name = receiver(delivery.job.submission.webhook)
            if active[name] < self._limits.max_per_receiver:
                active[name] += 1
                self._active[job_id] = name
                del self._waiting[job_id]
                self._running.start(self._deliver(session, delivery), f"delivery {job_id}")

    async def _deliver(self, session: ClientSession, delivery: Delivery) -> None:
        try:
            why = await self._try(session, delivery)
            again_at = None if why is None else after_try(delivery, self._clock.now())
            self._log(delivery, why, again_at)
            await self._store.tried(delivery, again_at)
        except StoreError:
            log.warning("delivery.not_noted", job=delivery.job.id)
            # The delivery is still due: do not repeat it immediately.
            await asyncio.sleep(DELIVERY_RETRY_MILLIS / 1000)
        finally:
            self._finished.append(delivery.job.id)
            self.wake()

    async def _try(self, session: ClientSession, delivery: Delivery) -> str | None:
        """Make one attempt. Return None if nothing is left to send, else why it failed."""
        try:
            webhook = self._open_webhook(delivery.job.submission.webhook or "")
            async with self._body_freed:
                await self._body_freed.wait_for(
                    lambda: self._body_bytes < self._limits.max_body_bytes
                )
                body = await self._body(delivery)
                self._body_bytes += len(body)
            try:
                if not body:
                    return None
                return await self._sender.send(session, webhook, message_id(delivery.job), body)
            finally:
                async with self._body_freed:
                    self._body_bytes -= len(body)
                    self._body_freed.notify()
        except OtherSealError as error:
            return str(error)
        except StoreError:
            # The body could not be read: this is not an attempt.
            raise
        # An internal error counts as an attempt, so that the delivery ends.
        except Exception:
            log.exception("delivery.broke", job=delivery.job.id)
            return "internal error"

    async def _body(self, delivery: Delivery) -> bytes:
        """Return the body to send; empty if the job was retried, which withdraws its delivery."""
        job = await self._store.find(delivery.job.id)
        if job is None or job.retry_count != delivery.job.retry_count:
            return b""
        return await self._render(job)

    def _log(self, delivery: Delivery, why: str | None, again_at: Millis | None) -> None:
        job = delivery.job
        tries = delivery.tries + 1
        name = receiver(job.submission.webhook)
        if why is None:
            log.debug("delivery.done", job=job.id, receiver=name, tries=tries)
        elif again_at is None:
            log.warning("delivery.gave_up", job=job.id, receiver=name, tries=tries, why=why)
        else:
            log.debug("delivery.failed", job=job.id, receiver=name, tries=tries, why=why)
