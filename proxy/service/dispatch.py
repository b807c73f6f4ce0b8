"""Who runs what: jobs leave the queue here, as fast as the workers have credit.

Hand-out is by credit. A worker says how many jobs it will hold at once; what it holds is counted here, from the moment
a job is taken for it until its `End` has come. So no worker is ever given more than it has slots for, and a job that is
stopped keeps its slot until the engine has really let go of it.

A hand-out takes jobs for the least loaded worker, only as many as bring it level with the next one, and goes on until
the queue or the credit is used up. It runs once per turn of the event loop, however many jobs or credits came in it.
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

LOOK_SECONDS = 5.0  # a hint that was lost, or a disk that was full, costs no more than this


class Dispatch:
    """Hands jobs to workers."""

    def __init__(
        self,
        store: JobStore,
        signal: Signal,
        fleet: Fleet,
        output: Mailboxes,
        recorder: Recorder,
        events: JobEvents,
        clock: Clock,
    ) -> None:
        self._store, self._signal, self._fleet, self._clock = store, signal, fleet, clock
        self._output, self._recorder, self._events = output, recorder, events

    async def serve(self, endpoint: EndpointId) -> None:
        """Hand out this endpoint's jobs for ever."""
        while True:
            await self._signal.wait(endpoint, LOOK_SECONDS)
            await self._hand_out(endpoint)

    def wake(self, endpoint: EndpointId) -> None:
        """There may be a new job or new credit."""
        self._signal.wake(endpoint)

    async def _hand_out(self, endpoint: EndpointId) -> None:
        while (free := self._fleet.next_free(endpoint)) is not None:
            worker, limit = free
            if not await self._give(worker, limit=limit, light_limit=0):
                break
        while (light := self._fleet.next_light(endpoint)) is not None:
            if not await self._give(light, limit=0, light_limit=light.light_credit):
                break

    async def _give(self, worker: Worker, *, limit: int, light_limit: int) -> bool:
        now, since = self._clock.now(), asyncio.get_running_loop().time()
        jobs = await self._store.take(
            worker.endpoint, worker.id, limit=limit, light_limit=light_limit, now=now
        )
        port = worker.port
        if (
            port is None or worker.is_ending
        ):  # it went meanwhile: nothing was delivered, so nothing was lost
            for job in jobs:
                await self._store.settle(job.id, Event.RELEASE, now=now, attempt=job.attempt)
            return bool(jobs)
        for job in jobs:  # all in one turn of the event loop: who ends one of them must find its run, to have it stopped
            worker.hold(job, since=since)
            if (mailbox := self._output.get(job.id)) is not None:
                mailbox.begin(job.attempt, port)
            elif job.submission.durable:
                self._recorder.begin(job.id, job.attempt, port)
                self._events.notify(job.id)
            port.offer(job)
            log.debug("job.taken", job=job.id, attempt=job.attempt, worker=worker.id)
        return bool(jobs)
