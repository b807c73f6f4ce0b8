"""Send the webhooks that are due in the store (at-least-once delivery).

The state is in the store only: a delivery stays there until its receiver has acknowledged it or all
tries have failed. A proxy that exits during a delivery therefore sends it again after its restart.

Only the loop of `serve` changes the turns. A finished delivery leaves them before the next query of
the store, never during one, so that a query cannot return it in its old state. A query skips the
receivers and the owners that cannot start a delivery.
"""

import asyncio
from collections.abc import Awaitable, Callable
from functools import partial
from typing import TypeAlias

import structlog

from proxy.access.encryption import OtherSealError
from proxy.jobs.model import Delivery, Job, JobId, Millis
from proxy.jobs.policy import DELIVERY_RETRY_MILLIS, after_try
from proxy.service.background import Background, insist
from proxy.service.clock import Clock
from proxy.service.events import Subscription
from proxy.store.base import JobStore
from proxy.store.errors import StoreError
from proxy.webhooks.body_budget import BodyBudget
from proxy.webhooks.sender import Sender
from proxy.webhooks.signature import message_id
from proxy.webhooks.turns import DeliveryLimits, DeliveryTurns

log = structlog.get_logger()

POLL_SECONDS = 0.25

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
        used = limits or DeliveryLimits()
        self._events = Subscription()
        self._running = Background()
        self._is_open = True
        self._turns = DeliveryTurns(used)
        self._bodies = BodyBudget(used.max_body_bytes)
        self._finished: list[JobId] = []
        self._queried_at = float("-inf")

    def wake(self) -> None:
        """Notify the loop that a delivery may be due."""
        self._events.notify()

    async def serve(self) -> None:
        """Deliver until `drain` is called or the task is cancelled."""
        async with self._sender.closing():
            try:
                while self._is_open:
                    await self._start_due()
                    await self._events.wait(POLL_SECONDS)
            finally:
                await self._running.finish(0)

    async def drain(self, seconds: float) -> None:
        """Start no new deliveries, and wait up to `seconds` for the active ones.

        A delivery that has not finished by then is cancelled and stays in the store.
        """
        self._is_open = False
        await self._running.finish(seconds)

    async def _start_due(self) -> None:
        for job_id in self._finished:
            self._turns.end(job_id)
        self._finished.clear()
        self._start_waiting()
        now = asyncio.get_running_loop().time()
        # Limit the rate of queries: as long as deliveries wait here, a few queries per second
        # suffice.
        if self._turns.has_waiting and now < self._queried_at + POLL_SECONDS:
            return
        self._queried_at = now
        while self._is_open and not self._turns.is_full:
            due = await self._store.deliveries(
                self._clock.now(),
                self._turns.query_limit,
                besides=self._turns.full_receivers(),
                besides_owners=self._turns.full_owners(),
            )
            if not self._turns.add(due):
                break
            self._start_waiting()

    def _start_waiting(self) -> None:
        """Start the waiting deliveries that the limits allow."""
        if self._is_open:
            for delivery in self._turns.start():
                self._running.start(self._deliver(delivery), f"delivery {delivery.job.id}")

    async def _deliver(self, delivery: Delivery) -> None:
        try:
            why = await self._try(delivery)
            again_at = None if why is None else after_try(delivery, self._clock.now())
            self._log(delivery, why, again_at)
            # A receiver that got it must not get it again because the store does not answer.
            await insist(partial(self._store.tried, delivery, again_at))
        except StoreError:
            log.warning("delivery.not_noted", job=delivery.job.id)
            # The delivery is still due: do not repeat it immediately.
            await asyncio.sleep(DELIVERY_RETRY_MILLIS / 1000)
        finally:
            self._finished.append(delivery.job.id)
            self.wake()

    async def _try(self, delivery: Delivery) -> str | None:
        """Make one try. Return None if nothing is left to send, else why it failed."""
        receiver = delivery.job.submission.receiver
        try:
            webhook = self._open_webhook(delivery.job.submission.webhook or "")
            async with self._bodies.reserved(receiver, partial(self._body, delivery)) as body:
                if not body:
                    return None
                return await self._sender.send(webhook, message_id(delivery.job), body)
        except OtherSealError as error:
            return str(error)
        except StoreError:
            # The body could not be read: this is not a try.
            raise
        # An internal error counts as a try, so that the delivery ends.
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
        address = job.submission.receiver.address
        if why is None:
            log.debug("delivery.done", job=job.id, receiver=address, tries=tries)
        elif again_at is None:
            log.warning("delivery.gave_up", job=job.id, receiver=address, tries=tries, why=why)
        else:
            log.debug("delivery.failed", job=job.id, receiver=address, tries=tries, why=why)
