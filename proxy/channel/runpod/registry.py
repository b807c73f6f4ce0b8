"""The registry of Runpod workers: admission, loss, and recovery of their jobs."""

import asyncio
from collections.abc import Sequence
from functools import partial

import structlog

from proxy.channel.runpod.comparison import PostedElements
from proxy.channel.runpod.tracking import Run, RunpodTimeouts, VanishedRun
from proxy.channel.runpod.worker import RunpodWorker
from proxy.jobs.model import EndpointId, JobError, JobId, WorkerId
from proxy.jobs.policy import WORKER_LOST, Ending, RunEnd
from proxy.service.fleet import Fleet
from proxy.service.json_text import INLINE_MAX_BYTES
from proxy.service.orphans import Orphans
from proxy.service.pauses import LOOK_SECONDS, Pauses
from proxy.service.ports import OfferedJob
from proxy.service.recorder import output_of

log = structlog.get_logger()

# The time after which the state of a lost worker is discarded.
FORGET_SECONDS = 600.0
# A limit is required because workers choose their own ids.
MAX_WORKERS = 10_000
# The time for which a worker is reported as unhealthy, unless it returns.
UNHEALTHY_SECONDS = 300.0
# A worker whose engine has exited fails every job at once, so it gets no jobs for this time.
EXCLUDED_SECONDS = 60.0
NO_FORMS = JobError(
    "unsupported_media_type", "The workers of this endpoint accept only JSON requests."
)
UNREADABLE_SECRETS = JobError(
    "unreadable_secrets",
    "The secrets of this job (`s3Config`) cannot be decrypted: the server has another `seal-key`"
    " than at its submission. Submit it again.",
)
NO_RESULT = JobError(
    WORKER_LOST.code,
    "The worker dropped the job without a result. "
    "Check that its handler returns a JSON-serializable value.",
)


class TooManyWorkersError(Exception):
    """The limit of worker ids is reached."""


class WorkerIdConflictError(Exception):
    """Another worker in the fleet has this id."""


class WorkerRegistry:
    """Holds the Runpod workers and removes those that are lost."""

    def __init__(
        self, fleet: Fleet, orphans: Orphans, pauses: Pauses, timeouts: RunpodTimeouts
    ) -> None:
        self._fleet = fleet
        self._orphans = orphans
        self._pauses = pauses
        self.timeouts = timeouts
        self._workers: dict[tuple[EndpointId, WorkerId], RunpodWorker] = {}

    async def serve(self) -> None:
        """Check all workers periodically. Runs until it is cancelled."""
        while True:
            await asyncio.sleep(LOOK_SECONDS)
            self._pauses.look(asyncio.get_running_loop().time())
            for worker in tuple(self._workers.values()):
                self._look(worker)

    def restart_leases(self, now: float) -> None:
        """Start the leases of all workers again."""
        for worker in self._workers.values():
            worker.restart_lease(now)

    def find(self, endpoint: EndpointId, worker_id: str) -> RunpodWorker | None:
        """Return a worker that has sent a request before, or None."""
        return self._workers.get((endpoint, WorkerId(worker_id)))

    def admit(self, endpoint: EndpointId, name: str) -> RunpodWorker:
        """Return the worker with this id and add it to the fleet unless it is excluded."""
        worker_id = WorkerId(name)
        worker = self._workers.get((endpoint, worker_id))
        namesake = self._fleet.get(worker_id)
        if namesake is not None and (worker is None or namesake is not worker.member):
            raise WorkerIdConflictError
        now = asyncio.get_running_loop().time()
        if worker is None:
            if len(self._workers) >= MAX_WORKERS:
                raise TooManyWorkersError
            worker = self._workers[endpoint, worker_id] = RunpodWorker(
                worker_id, endpoint, now, self
            )
            worker.tracked.expect(self._orphans.of(worker_id), now)
        if namesake is None and now >= worker.excluded_until:
            worker.rejoin(now)
            self._fleet.add(worker.member)
            log.info("worker.joined", worker=worker_id, endpoint=endpoint, engine="stock")
        return worker

    async def adopt(self, worker: RunpodWorker, job_id: JobId, *, waits: bool) -> Run | None:
        """Adopt and return the run that this worker had before the proxy started, or None.

        `waits`: see `Orphans.claim`. A ping does not wait, a post does.
        """
        if not waits and worker.adopting.locked():
            return None
        # A ping and a post can name the same job at the same time.
        async with worker.adopting:
            if (run := worker.tracked.runs.get(job_id)) is not None:
                return run
            posted = PostedElements()
            collect = partial(_collect, posted)
            job = await self._orphans.claim(worker.member, worker, job_id, collect, waits=waits)
            if job is None:
                return None
            now = asyncio.get_running_loop().time()
            run = Run(job.attempt, None, given_at=now, has_arrived=True, posted=posted)
            worker.tracked.give(job_id, run)
            hold = worker.member.holds.get(job_id)
            if hold is not None and hold.stopped is not None:
                worker.stop(job_id, run.attempt)
            return run

    def has_orphans(self) -> bool:
        """Return True if there are runs that may be adopted."""
        return bool(self._orphans)

    def orphans(self, jobs: frozenset[str]) -> frozenset[str]:
        """Return those of these jobs whose runs may be adopted."""
        return frozenset(job_id for job_id in jobs if JobId(job_id) in self._orphans)

    def report_unhealthy(self, endpoint: EndpointId, name: str, why: str, *, exclude: bool) -> None:
        """Remove an unhealthy worker from the fleet and report it."""
        log.warning("worker.unhealthy", worker=name, endpoint=endpoint, why=why)
        now = asyncio.get_running_loop().time()
        worker = self.find(endpoint, name)
        if worker is not None:
            worker.excluded_until = now + EXCLUDED_SECONDS if exclude else now
            self._fleet.remove(worker.member, why)
        self._fleet.unhealthy.report(WorkerId(name), endpoint, now + UNHEALTHY_SECONDS, why)

    # `RunListener`

    def give_back(self, worker: RunpodWorker, job: OfferedJob) -> None:
        self._fleet.end_run(worker.member, job.id, job.attempt, RunEnd(Ending.RELEASED))

    def refuse(self, worker: RunpodWorker, job: OfferedJob) -> None:
        if any(
            not isinstance(other.port, RunpodWorker) for other in self._fleet.of(worker.endpoint)
        ):
            self.give_back(worker, job)  # a native worker can run it
            return
        self._fleet.end_run(worker.member, job.id, job.attempt, RunEnd(Ending.REFUSED, NO_FORMS))

    def fail_unreadable(self, worker: RunpodWorker, job: OfferedJob) -> None:
        log.error("job.unreadable", job=job.id, hint="restore the seal-key of the data directory")
        end = RunEnd(Ending.REFUSED, UNREADABLE_SECRETS)
        self._fleet.end_run(worker.member, job.id, job.attempt, end)

    def recover(self, worker: RunpodWorker, vanished: VanishedRun) -> None:
        job_id, run, counts = vanished
        log.info(
            "stock.vanished",
            job=job_id,
            attempt=run.attempt,
            worker=worker.id,
            stopped=run.is_stopped,
        )
        end = RunEnd(Ending.LOST, NO_RESULT) if counts else RunEnd(Ending.RELEASED)
        self._fleet.end_run(worker.member, job_id, run.attempt, end)

    def wake(self, worker: RunpodWorker) -> None:
        self._fleet.wake(worker.endpoint)

    def _look(self, worker: RunpodWorker) -> None:
        now = asyncio.get_running_loop().time()
        if self._fleet.get(worker.id) is not worker.member:
            if not worker.life.connections and now - worker.asked_at > FORGET_SECONDS:
                del self._workers[worker.endpoint, worker.id]
        elif why := worker.life.loss(now, self.timeouts):
            self._fleet.remove(worker.member, why)
        else:
            # The lease of the fleet applies to workers with one connection.
            worker.member.seen = now
            worker.update_capacity()


async def _collect(posted: PostedElements, elements: Sequence[bytes]) -> None:
    """Add elements of an output log to those that the worker has posted."""
    if sum(map(len, elements)) <= INLINE_MAX_BYTES:
        posted.extend(map(output_of, elements))
    else:
        await asyncio.to_thread(posted.extend, map(output_of, elements))
