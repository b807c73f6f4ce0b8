"""The dispatcher: jobs leave the queue here, limited by the credit of the workers.

A worker announces how many jobs it holds at the same time. Its jobs are counted here, from the
moment when a job is taken for it until its `End` has arrived. So a worker never receives more jobs
than it has slots, and a stopped job occupies its slot until the engine has ended it.

A hand-out takes jobs for the least loaded worker, as many as make it equal to the next one, and
repeats this until the queue is empty or the credit is used up. It runs once per turn of the event
loop, whatever the number of new jobs or credits.
"""

import asyncio

import structlog

from proxy.jobs.lifecycle import Event
from proxy.jobs.model import EndpointId
from proxy.service.clock import Clock
from proxy.service.events import JobEvents
from proxy.service.fleet import Fleet, Worker
from proxy.service.mailbox import Mailboxes
from proxy.service.recorder import Recorder
from proxy.store.base import JobStore, Signal

log = structlog.get_logger()

# The longest delay that a lost hint or a full disk causes.
RETRY_SECONDS = 5.0


class Dispatch:
    def __init__(
        self,
        store: JobStore,
        signal: Signal,
        fleet: Fleet,
        mailboxes: Mailboxes,
        recorder: Recorder,
        events: JobEvents,
        clock: Clock,
    ) -> None:
        self._store = store
        self._signal = signal
        self._fleet = fleet
        self._mailboxes = mailboxes
        self._recorder = recorder
        self._events = events
        self._clock = clock

    async def serve(self, endpoint: EndpointId) -> None:
        """Hand out the jobs of an endpoint until cancelled."""
        while True:
            await self._signal.wait(endpoint, RETRY_SECONDS)
            await self._hand_out(endpoint)

    def wake(self, endpoint: EndpointId) -> None:
        """Start a hand-out: the endpoint may have a new job or new credit."""
        self._signal.wake(endpoint)

    async def _hand_out(self, endpoint: EndpointId) -> None:
        while (free := self._fleet.next_free(endpoint)) is not None:
            worker, limit = free
            if not await self._take_for(worker, limit=limit, light_limit=0):
                break
        while (light := self._fleet.next_light(endpoint)) is not None:
            if not await self._take_for(light, limit=0, light_limit=light.light_credit):
                break

    async def _take_for(self, worker: Worker, *, limit: int, light_limit: int) -> bool:
        now = self._clock.now()
        since = asyncio.get_running_loop().time()
        jobs = await self._store.take(
            worker.endpoint, worker.id, limit=limit, light_limit=light_limit, now=now
        )
        port = worker.port
        if port is None or worker.is_ending:
            # The worker has left in the meantime; nothing was delivered, so nothing is lost.
            for job in jobs:
                await self._store.settle(job.id, Event.RELEASE, now=now, attempt=job.attempt)
            return bool(jobs)
        # All in one turn of the event loop: a cancellation must find the run in order to stop it.
        for job in jobs:
            worker.hold(job, since=since)
            if (mailbox := self._mailboxes.get(job.id)) is not None:
                mailbox.begin(job.attempt, port)
            elif job.submission.durable:
                self._recorder.begin(job.id, job.attempt, port)
                self._events.notify(job.id)
            port.offer(job)
            log.debug("job.taken", job=job.id, attempt=job.attempt, worker=worker.id)
        return bool(jobs)
