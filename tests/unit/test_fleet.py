"""The fleet: the ends of runs, the credit of workers, and their leases."""

import asyncio

import pytest
from harness.data.jobs import HERE, submission
from harness.worker.port import Port
from harness.worker.sink import RecordingSink

from proxy.jobs.lifecycle import Status
from proxy.jobs.model import EndpointId, Job, JobError, JobId, Millis, WorkerId
from proxy.jobs.policy import WORKER_LOST, Ending, RunEnd
from proxy.service.events import LocalSignal
from proxy.service.fleet import Fleet
from proxy.service.unhealthy import UNHEALTHY_MAX_WORKERS
from proxy.service.worker import UNSENT_MAX_BYTES, Worker

W = WorkerId("w")
A = JobId("a")
COMPLETED = RunEnd(Ending.COMPLETED)


@pytest.fixture
def signal() -> LocalSignal:
    return LocalSignal()


@pytest.fixture
def fleet(signal: LocalSignal) -> Fleet:
    return Fleet(signal)


@pytest.fixture
def port() -> Port:
    return Port()


@pytest.fixture
def worker(fleet: Fleet, port: Port) -> Worker:
    """Return a worker of the fleet with two slots of each kind."""
    return joined(fleet, "w", slots=2, light_slots=2, port=port)


def joined(
    fleet: Fleet, name: str, slots: int, light_slots: int = 0, port: Port | None = None
) -> Worker:
    worker = Worker(
        WorkerId(name),
        HERE,
        port or Port(),
        seen=0.0,
        slots=slots,
        light_slots=light_slots,
    )
    fleet.add(worker)
    return worker


def running(job_id: str, attempt: int = 1, **changed: object) -> Job:
    wanted = submission(job_id, **changed)
    return Job(wanted, 1, Status.IN_PROGRESS, Millis(0), attempt=attempt, worker=W)


def held(worker: Worker, job_id: str = A, attempt: int = 1, **changed: object) -> RecordingSink:
    """Let the worker hold a run; return the run's sink."""
    sink = RecordingSink()
    worker.hold(running(job_id, attempt, **changed), sink, since=0.0)
    return sink


async def is_woken(signal: LocalSignal) -> bool:
    return await signal.wait(HERE, 0.0)


# Ends of runs


async def test_the_end_of_a_run_frees_its_slot_and_wakes_the_dispatcher(
    fleet: Fleet, worker: Worker, signal: LocalSignal
) -> None:
    sink = held(worker)
    assert (worker.held, worker.credit) == (1, 1)
    fleet.end_run(worker, A, 1, COMPLETED)
    assert sink.calls == [("end", 1, COMPLETED)]
    assert (worker.held, worker.credit) == (0, 2)
    assert await is_woken(signal)


async def test_the_end_of_a_run_that_is_not_held_changes_nothing(
    fleet: Fleet, worker: Worker, signal: LocalSignal
) -> None:
    sink = held(worker, attempt=2)
    for job_id, attempt in ((A, 1), (A, 3), (JobId("b"), 2)):
        assert fleet.end_run(worker, job_id, attempt, COMPLETED) is None
        fleet.cut_run(worker, job_id, attempt, COMPLETED)
    assert sink.calls == []
    assert worker.held == 1
    assert not await is_woken(signal)


async def test_a_cut_run_occupies_its_slot_until_the_worker_has_ended_it(
    fleet: Fleet, worker: Worker, port: Port
) -> None:
    sink = held(worker)
    end = RunEnd(Ending.REFUSED, JobError("because", "Because."))
    fleet.cut_run(worker, A, 1, end)
    fleet.cut_run(worker, A, 1, end)
    # The sink ignores the second end.
    assert sink.calls == [("end", 1, end)] * 2
    assert port.messages == [("stop", "a", 1)]
    assert worker.held == 1
    fleet.end_run(worker, A, 1, COMPLETED)
    assert worker.held == 0


async def test_the_run_of_a_job_that_has_ended_in_another_way_is_stopped(
    fleet: Fleet, worker: Worker, port: Port
) -> None:
    sink = held(worker)
    other = held(worker, "b")
    fleet.stop_run(running("a"))
    assert (sink.calls, other.calls) == ([("drop", 1)], [])
    assert port.messages == [("stop", "a", 1)]
    assert worker.held == 2
    assert worker.holds[A].stopped is not None
    fleet.stop_run(running("unknown"))
    assert port.messages == [("stop", "a", 1)]


async def test_a_stop_while_the_worker_is_not_connected_is_noted(
    fleet: Fleet, worker: Worker, port: Port
) -> None:
    held(worker)
    worker.port = None
    fleet.stop_run(running("a"))
    assert port.messages == []
    assert worker.holds[A].stopped is not None


async def test_the_runs_of_a_worker_that_is_removed_are_lost(
    fleet: Fleet, worker: Worker, port: Port
) -> None:
    sinks = [held(worker, "a", 1), held(worker, "b", 3, light=True)]
    fleet.remove(worker, "it left")
    fleet.remove(worker, "again")
    error = JobError(WORKER_LOST.code, "The worker that ran this was lost: it left.")
    end = RunEnd(Ending.LOST, error)
    assert [sink.calls for sink in sinks] == [[("end", 1, end)], [("end", 3, end)]]
    assert port.messages == [("close", "it left", 0)]
    assert fleet.get(W) is None
    assert not worker.is_open


async def test_a_worker_that_replaced_another_is_not_removed_with_it(
    fleet: Fleet, worker: Worker
) -> None:
    later = joined(fleet, "w", 1)
    fleet.remove(worker, "it left")
    assert fleet.get(W) is later


# Credit


def test_light_runs_have_slots_of_their_own(worker: Worker) -> None:
    held(worker, "a")
    held(worker, "b", light=True)
    held(worker, "c", light=True)
    assert (worker.credit, worker.light_credit) == (1, 0)
    assert (worker.load(light=False), worker.load(light=True)) == ((1, 2), (2, 2))
    worker.release(JobId("b"))
    assert (worker.credit, worker.light_credit) == (1, 1)


def test_a_run_replaces_the_earlier_run_of_its_job(worker: Worker) -> None:
    held(worker, "a", 1, light=True)
    held(worker, "a", 2)
    assert (worker.held, worker.light_held) == (1, 0)
    assert worker.holds[A].attempt == 2


def test_reserved_slots_are_not_credit(worker: Worker) -> None:
    worker.reserve(1, light=False)
    worker.reserve(2, light=True)
    assert (worker.credit, worker.light_credit) == (1, 0)
    held(worker)
    held(worker, "b")
    assert worker.credit == 0
    worker.reserve(-1, light=False)
    worker.reserve(-2, light=True)
    assert (worker.credit, worker.light_credit) == (0, 2)


@pytest.mark.parametrize("fault", ["disconnected", "ending", "full"])
def test_a_worker_that_a_job_would_not_reach_has_no_credit(
    worker: Worker, port: Port, fault: str
) -> None:
    match fault:
        case "disconnected":
            worker.port = None
        case "ending":
            worker.is_ending = True
        case "full":
            port.backlog = UNSENT_MAX_BYTES
    assert (worker.credit, worker.light_credit) == (0, 0)


def test_the_least_loaded_worker_is_next(fleet: Fleet) -> None:
    assert fleet.next_free(HERE, light=False) is None
    first, second, third = (
        joined(fleet, name, slots) for name, slots in (("1", 4), ("2", 2), ("3", 9))
    )
    held(first, "a")
    second.reserve(2, light=False)
    held(third, "b")
    held(third, "c")
    held(third, "d")
    # As many jobs as make it as loaded as the next one.
    assert fleet.next_free(HERE, light=False) == (first, 2)
    first.reserve(3, light=False)
    assert fleet.next_free(HERE, light=False) == (third, 6)
    second.reserve(-1, light=False)
    assert fleet.next_free(HERE, light=False) == (second, 1)
    assert fleet.credit(HERE, light=False) == 7
    assert fleet.next_free(EndpointId("other"), light=False) is None


def test_light_jobs_go_to_the_worker_with_the_most_free_slots(fleet: Fleet) -> None:
    assert fleet.next_free(HERE, light=True) is None
    first, second = joined(fleet, "1", 1, 4), joined(fleet, "2", 1, 3)
    assert fleet.next_free(HERE, light=True) == (first, 4)
    first.reserve(2, light=True)
    assert fleet.next_free(HERE, light=True) == (second, 3)
    assert fleet.credit(HERE, light=True) == 5
    second.reserve(3, light=True)
    first.reserve(2, light=True)
    assert fleet.next_free(HERE, light=True) is None


# Leases


async def test_a_silent_worker_is_removed_when_its_lease_expires(
    fleet: Fleet, worker: Worker
) -> None:
    sink = held(worker)
    fleet.end_leases(15.0, lease=15.0)
    assert fleet.get(W) is worker
    fleet.end_leases(15.1, lease=15.0)
    assert fleet.get(W) is None
    [(_, _, end)] = sink.calls
    assert end.error.message == "The worker that ran this was lost: silent for 15 s."


async def test_a_worker_without_a_connection_is_removed_when_its_lease_expires(
    fleet: Fleet, worker: Worker
) -> None:
    sink = held(worker)
    worker.port = None
    fleet.end_leases(15.1, lease=15.0)
    [(_, _, end)] = sink.calls
    assert end.error.message == "The worker that ran this was lost: its connection was lost."


async def test_a_worker_that_loads_may_be_silent(fleet: Fleet) -> None:
    loading = joined(fleet, "w", 0)
    fleet.end_leases(999.0, lease=15.0)
    assert fleet.get(W) is loading


async def test_a_worker_whose_process_ended_is_removed_at_once(
    fleet: Fleet, worker: Worker
) -> None:
    sink = held(worker)
    worker.has_exited = True
    fleet.end_leases(0.0, lease=15.0)
    assert fleet.get(W) is None
    [(_, _, end)] = sink.calls
    assert end.ending is Ending.LOST


# Reports of unhealthy workers


def test_reports_of_unhealthy_workers_are_bounded_without_being_read(fleet: Fleet) -> None:
    """Each worker has its own name, like pods that are restarted repeatedly."""
    for number in range(UNHEALTHY_MAX_WORKERS + 10):
        fleet.unhealthy.report(WorkerId(f"pod-{number}"), HERE, number, "ill")
    assert len(fleet.unhealthy.reasons(HERE, -1.0)) == UNHEALTHY_MAX_WORKERS
    left = fleet.unhealthy.reasons(HERE, UNHEALTHY_MAX_WORKERS)
    assert len(left) == 9, "the last ones are known"


async def test_a_report_ends_when_the_worker_joins_again(fleet: Fleet) -> None:
    now = asyncio.get_running_loop().time()
    fleet.unhealthy.report(W, HERE, now + 60, "ill")
    assert fleet.unhealthy.reasons(HERE, now) == [f"{W}: ill"]
    joined(fleet, "w", 1)
    assert fleet.unhealthy.reasons(HERE, now) == []
