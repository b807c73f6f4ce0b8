"""The deliveries of a proxy, with a store and a fake clock."""

import asyncio
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field

from harness.data.clock import FakeClock
from harness.data.jobs import ALICE, HERE, submission
from proxy.jobs.lifecycle import Event
from proxy.jobs.model import Input, Job, Millis, Owner, WorkerId
from proxy.store.base import JobStore
from proxy.store.memory import MemoryStore
from proxy.webhooks.deliveries import Deliveries, Render
from proxy.webhooks.lookup import SendTimeouts
from proxy.webhooks.sender import Sender
from proxy.webhooks.turns import DeliveryLimits
from proxy.webhooks.url_policy import Allowed

KEY = bytes(range(32))
INPUT = b'{"n": 1.0e5,  "big": 12345678901234567890, "text": "\\u00fc"}'
OUTPUT = b'[1e400, {"a" : null }]'


async def render(job: Job) -> bytes:
    assert isinstance(job.submission.work, Input)
    values = (job.id.encode(), job.status.encode(), job.submission.work.body, job.output or b"null")
    return b'{"id": "%b", "status": "%b", "input": %b, "output": %b}' % values


async def lookup(host: str, _: int) -> Sequence[str]:
    """Resolve every name to this machine."""
    assert host.endswith(".example")
    return ["127.0.0.1"]


@dataclass
class Desk:
    """Deliveries with a store and a fake clock."""

    store: JobStore = field(default_factory=MemoryStore)
    # Receivers verify the timestamp of the signature.
    clock: FakeClock = field(default_factory=lambda: FakeClock(time.time_ns() // 1_000_000))

    @asynccontextmanager
    async def open(
        self,
        *,
        timeouts: SendTimeouts | None = None,
        drain: float = 0,
        render: Render = render,
        **limits: int,
    ) -> AsyncIterator[Deliveries]:
        """Run the deliveries of a proxy; a later call on the same store is a restart."""
        sender = Sender(
            KEY, Allowed.read(["127.0.0.1"]), self.clock, lookup=lookup, timeouts=timeouts
        )
        deliveries = Deliveries(
            self.store, sender, render, self.clock, limits=DeliveryLimits(**limits)
        )
        serving = asyncio.create_task(deliveries.serve())
        try:
            yield deliveries
        finally:
            await deliveries.drain(drain)
            serving.cancel()
            with suppress(asyncio.CancelledError):
                await serving

    async def end(
        self, job_id: str, webhook: str, event: Event = Event.COMPLETE, owner: Owner = ALICE
    ) -> Job:
        """Finish a job that has a webhook."""
        now = self.clock.now()
        wanted = submission(job_id, work=Input(INPUT), webhook=webhook, owner=owner)
        job = await self.store.submit(wanted, now)
        await self.store.take(HERE, WorkerId("w"), limit=1, light_limit=0, now=now, run=1)
        ended = await self.store.settle(job.id, event, now=now, output=OUTPUT)
        assert ended is not None
        return ended

    async def is_due(self) -> bool:
        return bool(await self.store.deliveries(self.clock.now(), 1))

    async def is_due_in(self, millis: int) -> bool:
        return bool(await self.store.deliveries(Millis(self.clock.now() + millis), 1))

    async def is_noted(self) -> bool:
        """Return True if the last attempt is recorded, so that nothing is due."""
        return not await self.is_due()
