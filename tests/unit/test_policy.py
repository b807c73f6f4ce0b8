"""Deadlines, lost runs, deliveries and stuck workers, as pure functions."""

from dataclasses import replace

import pytest
from harness.data.jobs import submission

from proxy.jobs.lifecycle import Event, Status
from proxy.jobs.model import Delivery, Job, JobError, Millis
from proxy.jobs.policy import MAX_LOST_RUNS, after_loss, after_try, deadline, is_stuck, overdue

LOST = JobError("worker_lost", "gone")


def queued(**changed: object) -> Job:
    return Job(
        submission("a", **changed), sequence=1, status=Status.IN_QUEUE, created_at=Millis(1_000)
    )


def taken(**changed: object) -> Job:
    return replace(queued(**changed), status=Status.IN_PROGRESS, attempt=1, taken_at=Millis(5_000))


def test_a_queued_job_waits_until_its_queue_deadline() -> None:
    job = queued(queued_until=Millis(4_000))
    assert overdue(job, Millis(3_999)) is None
    verdict = overdue(job, Millis(4_000))
    assert verdict is not None
    assert verdict.event is Event.EXPIRE
    assert verdict.error is not None
    assert verdict.error.code == "no_workers"
    assert "within 3 s" in verdict.error.message


@pytest.mark.parametrize(
    ("failures", "lost"), [(1, "1 run of this job was lost"), (2, "2 runs of this job were lost")]
)
def test_a_queue_timeout_after_lost_runs_names_them(failures: int, lost: str) -> None:
    verdict = overdue(replace(queued(queued_until=Millis(4_000)), failures=failures), Millis(4_000))
    assert verdict is not None
    message = f"{lost}, and no worker was free to run it again within 3 s."
    assert verdict.error == JobError("worker_lost", message)


def test_the_queue_deadline_does_not_apply_to_a_running_job() -> None:
    assert overdue(taken(queued_until=Millis(4_000)), Millis(10_000)) is None


def test_a_run_has_its_execution_timeout() -> None:
    job = taken(execution_timeout=Millis(2_000))
    assert overdue(job, Millis(6_999)) is None
    verdict = overdue(job, Millis(7_000))
    assert verdict is not None
    assert verdict.error == JobError("execution_timeout", "The job ran for longer than 2 seconds.")


@pytest.mark.parametrize("job", [queued(expires_at=Millis(4_000)), taken(expires_at=Millis(4_000))])
def test_a_time_to_live_applies_to_queued_and_running_jobs(job: Job) -> None:
    verdict = overdue(job, Millis(4_000))
    assert verdict is not None
    assert verdict.error is not None
    assert verdict.error.code == "expired"


def test_an_ended_job_has_no_deadline() -> None:
    ended = replace(queued(queued_until=Millis(1), expires_at=Millis(1)), status=Status.COMPLETED)
    assert deadline(ended) is None


def test_a_job_is_released_if_no_output_of_the_lost_run_was_sent() -> None:
    assert after_loss(taken(), LOST, output_left=False).event is Event.RELEASE


def test_a_job_fails_if_output_of_the_lost_run_was_sent() -> None:
    assert after_loss(taken(), LOST, output_left=True) == (Event.FAIL, LOST)


def test_a_job_fails_after_too_many_lost_runs() -> None:
    verdict = after_loss(replace(taken(), failures=MAX_LOST_RUNS - 1), LOST, output_left=False)
    assert verdict.event is Event.FAIL
    assert verdict.error is not None
    assert verdict.error.code == "gave_up"
    assert "3 runs were lost" in verdict.error.message


@pytest.mark.parametrize(("tries", "again_at"), [(0, 70_000), (1, 70_000), (2, None), (3, None)])
def test_a_delivery_is_tried_three_times_ten_seconds_apart(
    tries: int, again_at: int | None
) -> None:
    assert after_try(Delivery(taken(), tries), Millis(60_000)) == again_at


@pytest.mark.parametrize(
    ("stopped", "stuck"),
    [
        ([], False),
        ([None], False),
        ([90.0], True),
        ([90.1], False),
        ([1.0, 2.0], True),
        ([1.0, 95.0], False),
        ([1.0, None], False),
    ],
)
def test_a_worker_is_stuck_if_it_only_holds_runs_that_should_have_stopped(
    stopped: list[float | None], stuck: bool
) -> None:
    assert is_stuck(stopped, now=100.0, grace=9.95) is stuck
