"""Membership of the fleet: a worker joins, announces its models, reconnects and leaves."""

import asyncio
from collections.abc import Sequence

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
from proxy.service.endpoints import Endpoint, Endpoints, Model, OtherModelError
from proxy.service.fleet import Fleet, Worker
from proxy.service.orphans import Orphans
from proxy.service.ports import SinkVerdict
from proxy.wire import frames

log = structlog.get_logger()

# The close codes of a worker that leaves on purpose.
GOODBYE = (1000, 1001)

OUTPUT_LOST = RunEnd(Ending.LOST, JobError(WORKER_LOST.code, "Output was lost with a connection."))


class Membership:
    """Adds native workers to the fleet, and removes them when they leave."""

    def __init__(self, endpoints: Endpoints, fleet: Fleet, orphans: Orphans) -> None:
        self._endpoints = endpoints
        self._fleet = fleet
        self._orphans = orphans

    async def join(self, endpoint: Endpoint, hello: frames.Hello, connection: Connection) -> Worker:
        """Admit the new or reconnected worker of a hello. Raises `WorkerRefusedError`."""
        check_hello(hello)
        now = asyncio.get_running_loop().time()
        worker = self._fleet.get(WorkerId(hello.worker))
        if worker is None:
            worker = Worker(WorkerId(hello.worker), endpoint.id, connection, seen=now)
            self.announce(worker, hello)
            self._fleet.add(worker)
        else:
            if worker.endpoint != endpoint.id:
                raise WorkerRefusedError(
                    4409, f"worker {worker.id} already serves endpoint {worker.endpoint}"
                )
            if worker.port is not None and not isinstance(worker.port, Connection):
                raise WorkerRefusedError(
                    4409,
                    f"worker id {worker.id} is used by a Runpod worker; every worker needs its own",
                )
            self.announce(worker, hello)
            if worker.port is not None:
                worker.port.close("replaced by a newer connection")
            worker.port, worker.slots, worker.light_slots = connection, 0, 0
            heard, worker.seen = worker.seen, now
            self._compare(worker, hello.holds, heard, connection)
        for hold in hello.holds:
            job_id = JobId(hold.job)
            if job_id not in worker.holds and not await self._orphans.adopt(
                worker, connection, job_id, hold.attempt, hold.sent
            ):
                connection.stop(job_id, hold.attempt)
        log.info(
            "worker.joined",
            worker=worker.id,
            endpoint=endpoint.id,
            engine=worker.engine,
            holds=len(hello.holds),
        )
        return worker

    def announce(self, worker: Worker, hello: frames.Hello) -> None:
        """Record the models of a validated hello.

        Raises `WorkerRefusedError` if the endpoint serves another model.
        """
        worker.engine = hello.engine[:ENGINE_CHARACTERS]
        if not hello.models:
            return
        models = [Model(model.id, public_card(model), model.base) for model in hello.models]
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

    def part(self, worker: Worker, code: int) -> None:
        """Process the end of a worker's connection.

        A worker that left on purpose or held no runs is removed. Any other may reconnect.
        """
        worker.slots = worker.light_slots = 0
        if worker.ignored:
            log.warning("worker.ignored", worker=worker.id, frames=worker.ignored)
            worker.ignored = 0
        if code in GOODBYE or not worker.holds:
            self._fleet.remove(worker, "it left" if code in GOODBYE else "its connection was lost")
        else:
            log.info("worker.disconnected", worker=worker.id, code=code, holds=len(worker.holds))

    def _compare(
        self, worker: Worker, listed: Sequence[frames.Hold], heard: float, connection: Connection
    ) -> None:
        """Keep the runs that lost no frames with the old connection; end the others."""
        known = {hold.job: hold for hold in listed}
        for job_id, hold in list(worker.holds.items()):
            theirs = known.get(job_id)
            if theirs is None or theirs.attempt != hold.attempt:
                # A frame that arrived after the offer proves that the job was delivered. A job that
                # did not reach its worker did not run, so no failure is counted.
                was_delivered = hold.received or heard > hold.since
                end = RunEnd(Ending.LOST if was_delivered else Ending.RELEASED)
                self._fleet.end_run(worker, job_id, hold.attempt, end)
            elif hold.stopped is not None:  # the stop may have been lost with the connection
                worker.stop(job_id, now=worker.seen)
            elif theirs.sent != hold.received:
                self._fleet.cut_run(worker, job_id, hold.attempt, OUTPUT_LOST)
            elif hold.sink.reattach(hold.attempt, connection) is SinkVerdict.IGNORED:
                worker.stop(job_id, now=worker.seen)
