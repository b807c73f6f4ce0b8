"""The dispatcher: jobs leave their queues here, limited by the credit of the workers.

A worker announces how many jobs it holds at the same time. Its jobs are counted here, from the
moment when a job is taken for it until its `End` has arrived. So a worker never receives more jobs
than it has slots, and a stopped job occupies its slot until the engine has ended it.

An endpoint has two queues, of interactive and of durable jobs. A hand-out distributes the credit of
all workers over both in one order (`policy.share_credit`), to the least loaded worker first.
Interactive jobs are handed out in the same turn of the event loop. For durable jobs, credit is
reserved and a task asks the store. Until the store answers, credit that is not reserved goes to
interactive jobs; after `RESERVATION_SECONDS` without an answer, so does the reserved credit. A slow
store therefore does not hold back interactive jobs.

A hand-out runs once per turn of the event loop, whatever the number of new jobs or credits.
"""

import asyncio
from typing import NamedTuple, TypeAlias

import structlog

from proxy.jobs.model import EndpointId, Ids, WorkerId
from proxy.jobs.policy import share_credit
from proxy.service.background import Background
from proxy.service.durable import DurableRuns
from proxy.service.fleet import Fleet
from proxy.service.interactive import InteractiveJobs
from proxy.service.mailbox import Mailbox
from proxy.service.ports import OfferedJob, Sink
from proxy.service.worker import Worker
from proxy.store.base import JobStore

log = structlog.get_logger()

# The longest delay that a lost hint causes.
TAKE_RETRY_SECONDS = 5.0
# A healthy store answers within milliseconds.
RESERVATION_SECONDS = 1.0
# Jobs in one take, which is one transaction: the first job must not wait long for the last one.
TAKE_MAX_JOBS = 64
# The pause after the store has handed out no job although it has some: its disk may be full.
STORE_PAUSE_SECONDS = 1.0

Kind: TypeAlias = tuple[EndpointId, bool]
"""An endpoint, and True for light jobs: the jobs that need the same kind of credit."""


class Reservation(NamedTuple):
    """The slots of a worker that are reserved for durable jobs."""

    worker: Worker
    slots: int


class Dispatch:
    def __init__(
        self,
        fleet: Fleet,
        interactive: InteractiveJobs,
        durable: DurableRuns,
        store: JobStore,
        background: Background,
        ids: Ids,
    ) -> None:
        self._fleet = fleet
        self._interactive = interactive
        self._durable = durable
        self._store = store
        self._background = background
        self._ids = ids
        # The kinds of jobs for which the store is being asked.
        self._asking: dict[Kind, None] = {}
        # Bound once: a lookup at each job would cost more than all that is logged here.
        self._log = log.bind()

    async def serve(self, endpoint: EndpointId) -> None:
        """Hand out the jobs of an endpoint until cancelled."""
        while True:
            await self._fleet.wait(endpoint, TAKE_RETRY_SECONDS)
            for light in (False, True):
                self._hand_out(endpoint, light=light)

    def free_worker(self, endpoint: EndpointId, *, light: bool) -> Worker | None:
        """Return the worker for a new job that need not wait; None if jobs that need the same
        credit are queued, or no worker has a free slot.
        """
        if self.has_queued(endpoint) and (
            self._interactive.queued(endpoint, light=light)
            or self._store.queued(endpoint, light=light)
        ):
            return None
        if not light:
            return self._fleet.least_loaded(endpoint)
        free = self._fleet.next_free(endpoint, light=True)
        return None if free is None else free[0]

    def has_queued(self, endpoint: EndpointId) -> bool:
        """Return True if any job of an endpoint is queued."""
        return bool(self._interactive.all_queued(endpoint) or self._store.all_queued(endpoint))

    def offer(self, worker: Worker, mailbox: Mailbox, now: float) -> None:
        """Send a worker a job that was taken for it in this turn of the event loop, at the event
        loop's time `now`.
        """
        self._offer(worker, mailbox.job, mailbox, now)

    def _hand_out(self, endpoint: EndpointId, *, light: bool) -> None:
        credit = self._fleet.credit(endpoint, light=light)
        if not credit:
            return
        waiting = self._interactive.first(endpoint, credit, light=light)
        if (endpoint, light) in self._asking:
            durable, interactive = 0, len(waiting)
        else:
            durable, interactive = share_credit(
                credit,
                waiting,
                lambda before: self._store.queued(endpoint, light=light, before=before),
            )
        self._give(endpoint, interactive, light=light)
        shares = self._reserve(endpoint, durable, light=light)
        if shares:
            self._asking[endpoint, light] = None
            self._background.start(
                self._ask(endpoint, shares, light=light), f"take jobs of {endpoint}"
            )

    def _give(self, endpoint: EndpointId, number: int, *, light: bool) -> None:
        """Hand out interactive jobs.

        All in one turn of the event loop: a cancellation must find the run in order to stop it.
        """
        since = asyncio.get_running_loop().time()
        while number and (free := self._fleet.next_free(endpoint, light=light)) is not None:
            worker, limit = free
            mailboxes = self._interactive.take(endpoint, worker.id, min(limit, number), light=light)
            if not mailboxes:
                return
            number -= len(mailboxes)
            for mailbox in mailboxes:
                self._offer(worker, mailbox.job, mailbox, since)

    def _reserve(self, endpoint: EndpointId, number: int, *, light: bool) -> list[Reservation]:
        """Reserve credit for durable jobs; return the share of each worker."""
        shares: dict[WorkerId, Reservation] = {}
        while number and (free := self._fleet.next_free(endpoint, light=light)) is not None:
            worker, limit = free
            earlier = shares[worker.id].slots if worker.id in shares else 0
            share = min(limit, number, TAKE_MAX_JOBS - earlier)
            if not share:
                # The rest follows when the store has answered.
                break
            number -= share
            worker.reserve(share, light=light)
            shares[worker.id] = Reservation(worker, share + earlier)
        return list(shares.values())

    async def _ask(self, endpoint: EndpointId, shares: list[Reservation], *, light: bool) -> None:
        """Take durable jobs for the workers that have credit reserved for them."""
        try:
            results = await asyncio.gather(
                *(self._take_for(worker, slots, light=light) for worker, slots in shares),
                return_exceptions=True,
            )
            for error in results:
                if isinstance(error, Exception):
                    log.error("store.cannot_take", endpoint=endpoint, why=repr(error))
            has_taken = any(isinstance(number, int) and number for number in results)
            if not has_taken and self._store.queued(endpoint, light=light):
                await asyncio.sleep(STORE_PAUSE_SECONDS)
        finally:
            del self._asking[endpoint, light]
            self._fleet.wake(endpoint)

    async def _take_for(self, worker: Worker, slots: int, *, light: bool) -> int:
        """Take durable jobs for one worker and offer them; return their number."""
        has_lapsed = False

        def lapse() -> None:
            nonlocal has_lapsed
            has_lapsed = True
            worker.reserve(-slots, light=light)
            self._fleet.wake(worker.endpoint)

        timer = asyncio.get_running_loop().call_later(RESERVATION_SECONDS, lapse)
        try:
            # Awaited directly: the jobs are held in the turn in which their commit returns, so that
            # a cancellation that is committed after it finds their runs.
            jobs = await self._durable.take(
                worker.endpoint, worker.id, slots, light=light, run=self._ids.run()
            )
        finally:
            timer.cancel()
            if not has_lapsed:
                worker.reserve(-slots, light=light)
        since = asyncio.get_running_loop().time()
        # All in one turn of the event loop, as in `_give`.
        for job in jobs:
            credit = worker.light_credit if light else worker.credit
            if not worker.is_open or (has_lapsed and not credit):
                # The worker has left, or its slot was given to an interactive job.
                self._durable.give_back(job)
            else:
                self._offer(worker, job, self._durable.record(job), since)
        return len(jobs)

    def _offer(self, worker: Worker, job: OfferedJob, sink: Sink, since: float) -> None:
        """Send a worker a job that was taken for it; `since`: the event loop's time."""
        port = worker.port
        if port is not None:
            worker.hold(job, sink, since=since)
            sink.begin(job.attempt, port)
            port.offer(job)
            self._log.debug("job.taken", job=job.id, attempt=job.attempt, worker=worker.id)
