"""The reason why a job is queued, as a function of the job, the workers and the time."""

import pytest
from harness.data.jobs import HERE, submission
from harness.worker.port import Port
from harness.worker.sink import RecordingSink

from proxy.channel.native.validation import public_stage
from proxy.channel.runpod.worker import PollingWorker
from proxy.jobs.lifecycle import Status
from proxy.jobs.model import Job, Millis, WorkerId
from proxy.service.job_view import reason
from proxy.service.worker import LoadingStage, Worker

LATER = " Jobs of normal priority go first until it has waited for 60 s."


def queued(name: str = "a", **changed: object) -> Job:
    return Job(
        submission(name, **changed), sequence=1, status=Status.IN_QUEUE, created_at=Millis(0)
    )


def hold(worker: Worker, name: str, **changed: object) -> None:
    """Occupy a slot of the worker."""
    worker.hold(queued(name, **changed), RecordingSink(), since=0.0)


def busy(slots: int, taken: int, *, light: int = 0) -> Worker:
    found = Worker(WorkerId("w"), HERE, Port(), seen=0.0, slots=slots, light_slots=2)
    for number in range(taken):
        hold(found, f"job-{number}")
    for number in range(light):
        hold(found, f"light-{number}", light=True)
    return found


def polling(slots: int, taken: int) -> Worker:
    found = PollingWorker(WorkerId("s"), HERE, Port(), seen=0.0, slots=slots)
    for number in range(taken):
        hold(found, f"job-{number}", light=number == 0)
    return found


@pytest.mark.parametrize(
    ("workers", "ahead", "said"),
    [
        ([], 0, "No worker is connected."),
        ([busy(0, 0)], 3, "1 worker connected, none of them ready yet."),
        ([busy(1, 1)], 1, "Behind 1 job in the queue."),
        ([busy(1, 1)], 2, "Behind 2 jobs in the queue."),
        ([busy(1, 1)], 0, "Held by a limit: the only slot of 1 worker is taken."),
        ([busy(4, 4, light=2)], 0, "Held by a limit: all 4 slots of 1 worker are taken."),
        (
            [busy(4, 4), busy(2, 2), busy(0, 0)],
            0,
            "Held by a limit: all 6 slots of 2 workers are taken.",
        ),
        ([busy(4, 4), busy(2, 1)], 0, "Next in line."),
        ([polling(8, 8)], 0, "Held by a limit: all 8 slots of 1 worker are taken."),
        ([polling(1, 1), busy(1, 1)], 0, "Held by a limit: all 2 slots of 2 workers are taken."),
        ([polling(1, 0)], 0, "Next in line."),
    ],
)
def test_a_job_waits_for_workers_or_other_jobs_or_slots(
    workers: list[Worker], ahead: int, said: str
) -> None:
    assert reason(queued(), workers, ahead, Millis(0)) == said


def loading(since: int, text: str = "importing vLLM") -> Worker:
    found = busy(0, 0)
    found.stage = LoadingStage(text, Millis(since))
    return found


@pytest.mark.parametrize(
    ("workers", "said"),
    [
        (
            [loading(1_000)],
            "1 worker connected, none of them ready yet: it is loading (importing vLLM, 8 s).",
        ),
        (
            [busy(0, 0), loading(0, "warming up"), loading(5_000)],
            "3 workers connected, none of them ready yet: one is loading (warming up, 9 s).",
        ),
        ([busy(1, 1), loading(0)], "Held by a limit: the only slot of 1 worker is taken."),
    ],
)
def test_a_worker_that_loads_names_its_stage(workers: list[Worker], said: str) -> None:
    assert reason(queued(), workers, 0, Millis(9_900)) == said


@pytest.mark.parametrize(
    ("text", "stage"),
    [
        ("importing vLLM", "importing vLLM"),
        ("loading /srv/models/secret", "loading the model"),
        ("waiting for http://10.0.0.5:8000", "waiting for its upstream server"),
        ("warming up", "warming up"),
        ("starting the scripted engine", "starting the engine"),
        ("\n: data", "starting the engine"),
    ],
)
def test_clients_read_no_path_and_no_address_of_a_worker(text: str, stage: str) -> None:
    assert public_stage(text) == stage


def test_a_light_job_has_slots_of_its_own() -> None:
    light = queued(light=True)
    assert reason(light, [busy(1, 1, light=1)], 0, Millis(0)) == "Next in line."
    held = "Held by a limit: all 2 light slots of 1 worker are taken."
    assert reason(light, [busy(1, 0, light=2)], 0, Millis(0)) == held


@pytest.mark.parametrize(("now", "later"), [(0, LATER), (59_999, LATER), (60_000, "")])
def test_jobs_of_normal_priority_precede_low_priority_for_a_minute(now: int, later: str) -> None:
    low = queued(low_priority=True)
    held = "Held by a limit: the only slot of 1 worker is taken."
    assert reason(low, [busy(1, 1)], 0, Millis(now)) == f"{held}{later}"
    assert reason(low, [busy(1, 1)], 1, Millis(now)) == f"Behind 1 job in the queue.{later}"


def test_a_worker_that_is_being_stopped_is_not_ready() -> None:
    given_up = busy(1, 1)
    given_up.is_ending = True
    assert (
        reason(queued(), [given_up], 0, Millis(0)) == "1 worker connected, none of them ready yet."
    )
