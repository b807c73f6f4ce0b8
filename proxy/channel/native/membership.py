"""Membership of the fleet: a worker joins, announces its models, reconnects and leaves."""

import asyncio

import structlog

from proxy.channel.native.connection import Connection
from proxy.channel.native.validation import (
    ENGINE_CHARACTERS,
    WorkerRefusedError,
    check_hello,
    public_card,
)
from proxy.jobs.model import JobError, JobId, WorkerId
from proxy.jobs.policy import WORKER_LOST, Ending, RunEnd
from proxy.jobs.served_model import Model
from proxy.service.background import Background
from proxy.service.endpoints import Endpoint, Endpoints, OtherModelError
from proxy.service.fleet import Fleet
from proxy.service.orphans import Orphans
from proxy.service.ports import SinkVerdict
from proxy.service.worker import Worker
from proxy.wire import frames

log = structlog.get_logger()

# The close codes of a worker that leaves on purpose.
GOODBYE = (1000, 1001)

# The time in which what waits in the socket of an earlier connection is processed. A connection
# that is half open does not end, so the time is short; for another process it is shorter, because a
# worker that is refused later than `ACCEPTED_SECONDS` assumes that it was accepted.
EARLIER_CONNECTION_SECONDS = 2.0
OTHER_PROCESS_SECONDS = 0.5

ID_IN_USE = "another process is connected with this id; every worker needs its own WORKER_ID"
# A worker of an older version sends no instance.
REPLACED_HINT = (
    "two connections have the same id; every worker needs its own WORKER_ID. A worker of an older "
    "version also causes this line once, when its engine is ready"
)

UNLISTED = JobError(
    WORKER_LOST.code,
    "The connection to the worker was lost, and the worker no longer has the job or its result.",
)
OUTPUT_LOST = RunEnd(
    Ending.LOST,
    JobError(
        WORKER_LOST.code, "Part of the output was lost when the connection to the worker was lost."
    ),
)


class Membership:
    """Adds native workers to the fleet, and removes them when they leave."""

    def __init__(
        self,
        endpoints: Endpoints,
        fleet: Fleet,
        orphans: Orphans,
        background: Background,
        lease: float,
    ) -> None:
        self._endpoints = endpoints
        self._fleet = fleet
        self._orphans = orphans
        self._background = background
        self._lease = lease

    async def join(self, endpoint: Endpoint, hello: frames.Hello, connection: Connection) -> Worker:
        """Admit the new or reconnected worker of a hello. Raises `WorkerRefusedError`."""
        check_hello(hello)
        worker = await self._known(hello)
        if worker is not None:
            self._check_identity(worker, endpoint, hello)
            if not _is_same_process(worker, hello):
                # The runs of the earlier process are lost.
                self._fleet.remove(worker, "another process has taken over its id")
                worker = None
        now = asyncio.get_running_loop().time()
        connection.welcome(hello.features)
        if worker is None:
            worker = Worker(WorkerId(hello.worker), endpoint.id, connection, seen=now)
            self.announce(worker, hello)
            self._fleet.add(worker)
        else:
            self.announce(worker, hello)
            if isinstance(worker.port, Connection):
                _note_unsent(worker, worker.port)
                worker.port.close("replaced by a newer connection")
            worker.port, worker.slots, worker.light_slots = connection, 0, 0
            worker.seen = now
            self._compare(worker, hello, connection)
        worker.instance = hello.instance
        worker.heard = now
        for hold in hello.holds:
            await self._resume(worker, connection, hold)
        log.info(
            "worker.joined",
            worker=worker.id,
            endpoint=endpoint.id,
            engine=worker.engine,
            holds=len(hello.holds),
        )
        return worker

    async def _resume(self, worker: Worker, connection: Connection, theirs: frames.Hold) -> None:
        """Let a worker continue a run that it has listed, or stop the run."""
        job_id = JobId(theirs.job)
        attempt = theirs.attempt
        if worker.unwritten.get(job_id) == attempt:
            # Its end has arrived, and is acknowledged when it is written.
            return
        if job_id in worker.holds:
            _go_on(worker, connection, theirs)
        elif theirs.sent == frames.SENT_AGAIN:
            # The worker sends nothing of the run until it is acknowledged, so a store that does not
            # answer does not delay its other runs. The run occupies its slot already.
            worker.reserve(1, light=False)
            work = self._adopt(worker, connection, theirs)
            self._background.start(work, f"adopt {job_id}")
        elif await self._orphans.adopt(worker, connection, job_id, attempt, theirs.sent):
            _go_on(worker, connection, theirs)
        else:
            connection.stop(job_id, attempt)

    async def _adopt(self, worker: Worker, connection: Connection, theirs: frames.Hold) -> None:
        """Let a worker continue a run from before the start of this proxy, or stop the run. One of
        its slots is reserved.
        """
        job_id = JobId(theirs.job)
        try:
            is_adopted = await self._orphans.adopt(worker, connection, job_id, theirs.attempt, None)
        finally:
            worker.reserve(-1, light=False)
        if is_adopted:
            _go_on(worker, connection, theirs)
        else:
            connection.stop(job_id, theirs.attempt)

    def announce(self, worker: Worker, hello: frames.Hello) -> None:
        """Record the models of a validated hello.

        Raises `WorkerRefusedError` if the endpoint serves another model.
        """
        worker.engine = hello.engine[:ENGINE_CHARACTERS]
        if not hello.models:
            return
        models = [
            Model(model.id, public_card(model), model.base, frozenset(model.routes))
            for model in hello.models
        ]
        endpoint = self._endpoints.get(worker.endpoint)
        others = any(
            other.has_models and other is not worker for other in self._fleet.of(worker.endpoint)
        )
        try:
            if endpoint is not None:
                self._endpoints.announce(endpoint, models, others=others)
        except OtherModelError as error:
            raise WorkerRefusedError(4409, str(error)) from error
        worker.has_models = True
        log.info("worker.serves", worker=worker.id, models=[model.id for model in models])

    def part(self, worker: Worker, connection: Connection, code: int) -> None:
        """Process the end of a worker's connection.

        A worker that left on purpose or held no runs is removed. Any other may reconnect.
        """
        _note_unsent(worker, connection)
        worker.port = None
        worker.slots = worker.light_slots = 0
        if worker.ignored:
            log.warning("worker.ignored", worker=worker.id, frames=worker.ignored)
            worker.ignored = 0
        if code in GOODBYE or not worker.holds:
            self._fleet.remove(worker, "it left" if code in GOODBYE else "its connection was lost")
        else:
            log.info("worker.disconnected", worker=worker.id, code=code, holds=len(worker.holds))

    async def _known(self, hello: frames.Hello) -> Worker | None:
        """Return the worker with the id of a hello, after the end of its earlier connection.

        If this proxy was stopped, messages and the end of the earlier connection can still wait in
        its socket. Without them, runs would lack output that has arrived, and a worker that was
        restarted would seem to be connected twice.
        """
        worker = self._fleet.get(WorkerId(hello.worker))
        if worker is not None and isinstance(worker.port, Connection):
            if not _is_same_process(worker, hello):
                await worker.port.wait_ended(OTHER_PROCESS_SECONDS)
            elif worker.holds:
                worker.seen = asyncio.get_running_loop().time()
                await worker.port.wait_ended(EARLIER_CONNECTION_SECONDS)
        return self._fleet.get(WorkerId(hello.worker))

    def _check_identity(self, worker: Worker, endpoint: Endpoint, hello: frames.Hello) -> None:
        """Check that a hello may use the id of a known worker. Raises `WorkerRefusedError`."""
        if worker.port is not None and not isinstance(worker.port, Connection):
            raise WorkerRefusedError(
                4409,
                f"worker id {worker.id} is used by a Runpod worker; every worker needs its own",
            )
        is_connected = worker.port is not None
        is_same = _is_same_process(worker, hello)
        silence = asyncio.get_running_loop().time() - worker.seen
        if is_connected and not is_same and silence <= self._lease:
            raise WorkerRefusedError(4409, ID_IN_USE)
        if is_same and worker.endpoint != endpoint.id:
            raise WorkerRefusedError(
                4409, f"worker {worker.id} already serves endpoint {worker.endpoint}"
            )
        if is_connected and not (worker.instance and hello.instance):
            log.warning("worker.replaced", worker=worker.id, hint=REPLACED_HINT)

    def _compare(self, worker: Worker, hello: frames.Hello, connection: Connection) -> None:
        """Keep the runs that lost no frames with the old connection; end the others.

        A worker with the feature `RESEND` sends lost frames again.

        A run that is not listed has ended without an `End` that arrived, or has never begun. It
        counts as lost if a frame of it has arrived or if it was listed before. Otherwise a process
        that lists the runs that have just ended (it has an instance) cannot have run it. A worker
        of an older version does not list those. Any message of it after the offer then counts as
        proof that the job arrived, unless a part of the job was still unsent.
        """
        known = {hold.job: hold for hold in hello.holds}
        for job_id, hold in list(worker.holds.items()):
            theirs = known.get(job_id)
            if theirs is None or theirs.attempt != hold.attempt:
                is_proof = not hello.instance and worker.heard > hold.since
                may_have_run = hold.is_delivered or (is_proof and hold.may_have_run)
                end = RunEnd(Ending.LOST, UNLISTED) if may_have_run else RunEnd(Ending.RELEASED)
                self._fleet.end_run(worker, job_id, hold.attempt, end)
            elif hold.stopped is not None:  # the stop may have been lost with the connection
                worker.stop(job_id, now=worker.seen)
            elif theirs.sent not in (frames.SENT_AGAIN, hold.received):
                self._fleet.cut_run(worker, job_id, hold.attempt, OUTPUT_LOST)
            elif hold.sink.reattach(hold.attempt, connection) is SinkVerdict.IGNORED:
                worker.stop(job_id, now=worker.seen)


def _go_on(worker: Worker, connection: Connection, theirs: frames.Hold) -> None:
    """Note that a worker has listed a run that it holds, and tell it which frames to send again."""
    job_id = JobId(theirs.job)
    hold = worker.holds.get(job_id)
    if hold is None:
        return
    hold.is_listed = True
    if theirs.sent == frames.SENT_AGAIN and hold.stopped is None:
        # An incomplete output value is sent again from its beginning.
        hold.parts.clear()
        hold.parts_size = 0
        connection.acknowledge(job_id, theirs.attempt, hold.complete)


def _is_same_process(worker: Worker, hello: frames.Hello) -> bool:
    """Return True unless the hello certainly comes from another process than the worker."""
    return not worker.instance or not hello.instance or worker.instance == hello.instance


def _note_unsent(worker: Worker, connection: Connection) -> None:
    """Mark the runs of which a part was not written to a connection that has ended."""
    for job_id, hold in worker.holds.items():
        hold.is_unsent = connection.has_unsent(job_id)
