"""Pauses of the process: all leases begin again before one of them is judged."""

import pytest
from harness.data.jobs import HERE, submission
from harness.worker.port import Port
from harness.worker.sink import RecordingSink

from proxy.channel.runpod.tracking import Closing, Liveness, Run, RunpodTimeouts, TrackedRuns
from proxy.jobs.lifecycle import Status
from proxy.jobs.model import Job, JobId, Millis, WorkerId
from proxy.service.events import LocalSignal
from proxy.service.fleet import Fleet
from proxy.service.pauses import LOOK_SECONDS, Pauses
from proxy.service.worker import Worker

LEASE = 15.0
JOB = JobId("j")
TIMEOUTS = RunpodTimeouts(poll_seconds=20, lease_seconds=35, gap_seconds=10)


def paused(*moments: float) -> list[float]:
    """Return the times of the restarts, after a look at each moment."""
    restarts: list[float] = []
    pauses = Pauses()
    pauses.then(restarts.append)
    for moment in moments:
        pauses.look(moment)
    return restarts


def test_a_loop_that_runs_has_no_pause() -> None:
    assert paused(1_000.0) == []
    assert paused(*(LOOK_SECONDS * number for number in range(100))) == []
    assert paused(0.0, 1.2, 2.4) == [], "busy for less than a second"


def test_each_pause_restarts_the_leases_once() -> None:
    assert paused(0.0, 1.3, 1.3, 1.5, 21.5, 21.7) == [1.3, 21.5]


@pytest.fixture
def fleet() -> Fleet:
    return Fleet(LocalSignal())


@pytest.fixture
def worker(fleet: Fleet) -> Worker:
    worker = Worker(WorkerId("w"), HERE, Port(), seen=0.0, slots=1)
    job = Job(submission(JOB), 1, Status.IN_PROGRESS, Millis(0), attempt=1, worker=worker.id)
    worker.hold(job, RecordingSink(), since=0.0)
    fleet.add(worker)
    return worker


@pytest.mark.parametrize("is_connected", [True, False])
async def test_the_leases_of_native_workers_begin_again(
    fleet: Fleet, worker: Worker, is_connected: bool
) -> None:
    if not is_connected:
        worker.port = None
    fleet.restart_leases(20.0)
    fleet.end_leases(20.0, LEASE)
    fleet.end_leases(35.0, LEASE)
    assert fleet.get(worker.id) is worker
    fleet.end_leases(35.1, LEASE)
    assert fleet.get(worker.id) is None


def test_a_run_that_was_stopped_before_a_pause_gets_its_grace_period(
    fleet: Fleet, worker: Worker
) -> None:
    worker.stop(JOB, now=1.0)
    fleet.restart_leases(20.0)
    assert worker.holds[JOB].stopped == 20.0


def test_a_pause_does_not_count_as_silence_of_a_runpod_worker() -> None:
    life = Liveness(0.0)
    life.opened()
    life.restart(50.0)
    assert not life.loss(85.0, TIMEOUTS)
    assert life.loss(85.1, TIMEOUTS) == "silent for 35 s"


def test_a_runpod_worker_whose_connections_broke_can_reconnect_after_a_pause() -> None:
    life = Liveness(0.0)
    life.opened()
    life.closed(Closing(is_ours=False, is_reset=True, idle=None), 1.0)
    life.restart(50.0)
    assert not life.loss(60.0, TIMEOUTS)
    assert life.loss(60.1, TIMEOUTS) == "its process ended"


def test_requests_that_waited_during_a_pause_prove_no_drop() -> None:
    """A request that follows the response in the log can have been sent before it."""
    tracked = TrackedRuns()
    tracked.give(JOB, Run(1, None, given_at=1.0, misses=1))
    tracked.on_ping(frozenset(), 2.0, asked_at=1.5, died_at=0.0)
    tracked.restart(20.0)
    for _ in range(3):
        assert not tracked.on_ping(frozenset(), 20.1, asked_at=20.1, died_at=0.0)
    # Later requests do.
    tracked.on_ping(frozenset(), 30.0, asked_at=22.0, died_at=0.0)
    assert tracked.on_ping(frozenset(), 40.0, asked_at=22.0, died_at=0.0)


def test_a_job_that_was_not_written_yet_is_not_affected() -> None:
    tracked = TrackedRuns()
    run = Run(1, None)
    tracked.give(JOB, run)
    tracked.restart(20.0)
    assert run.given_at == float("inf")
