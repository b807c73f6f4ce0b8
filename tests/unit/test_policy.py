"""Deadlines, ends of runs, shares of credit, deliveries and stuck workers, as pure functions."""

from collections.abc import Iterable
from itertools import product
from typing import NamedTuple, TypeAlias

import pytest
from harness.data.jobs import submission
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from proxy.jobs.lifecycle import Event, Status
from proxy.jobs.model import Delivery, InteractiveJob, Job, JobError, Millis, WorkerId
from proxy.jobs.policy import (
    MAX_LOST_RUNS,
    WORKER_LOST,
    Ending,
    RunEnd,
    Verdict,
    after_run,
    after_try,
    deadline,
    is_stuck,
    overdue,
    share_credit,
)

GONE = JobError("worker_lost", "gone")


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


def test_the_record_of_an_interactive_job_has_the_same_deadlines() -> None:
    wanted = submission("a", queued_until=Millis(4_000), execution_timeout=Millis(2_000))
    record = InteractiveJob(wanted, sequence=1, created_at=Millis(1_000))
    assert deadline(record) == deadline(record.outline()) == 4_000
    record.take(WorkerId("w"), Millis(3_000))
    assert deadline(record) == deadline(record.outline()) == 5_000
    record.end(Event.COMPLETE, None, Millis(4_000))
    assert deadline(record) is None


# The end of a run

Case: TypeAlias = tuple[Ending, bool, bool, int]
"""The ending, `output_left`, `is_whole` and `failures`."""
BOTH = (False, True)
FAILURES = range(MAX_LOST_RUNS)
GAVE_UP = JobError("gave_up", "Given up after 3 runs were lost. Cause of the last: gone")
COMPLETED = Verdict(Event.COMPLETE, answered=True)
FAILED = Verdict(Event.FAIL, GONE)


def cases(
    ending: Ending,
    output_left: Iterable[bool] = BOTH,
    is_whole: Iterable[bool] = BOTH,
    failures: Iterable[int] = FAILURES,
) -> list[Case]:
    return list(product([ending], output_left, is_whole, failures))


VERDICTS: list[tuple[list[Case], Verdict]] = [
    (cases(Ending.COMPLETED), COMPLETED),
    (cases(Ending.FAILED), Verdict(Event.FAIL, GONE, answered=True)),
    (cases(Ending.REFUSED), FAILED),
    # The client has seen nothing of the run.
    (cases(Ending.RELEASED, [False]), Verdict(Event.RELEASE)),
    (cases(Ending.FULL, [False]), Verdict(Event.RELEASE)),
    (cases(Ending.LOST, [False], [False], [0, 1]), Verdict(Event.RELEASE, counts=True)),
    (cases(Ending.LOST, [False], [False], [2]), Verdict(Event.FAIL, GAVE_UP)),
    (cases(Ending.FULL, [True]), Verdict(Event.FAIL, GONE, answered=True)),
    # The client has everything.
    (cases(Ending.RELEASED, [True], [True]), COMPLETED),
    (cases(Ending.LOST, BOTH, [True]), COMPLETED),
    # The client has a part.
    (cases(Ending.RELEASED, [True], [False]), FAILED),
    (cases(Ending.LOST, [True], [False]), FAILED),
]


@pytest.mark.parametrize(
    ("case", "verdict"), [(case, verdict) for cases, verdict in VERDICTS for case in cases]
)
def test_the_end_of_a_run_has_one_verdict(case: Case, verdict: Verdict) -> None:
    ending, output_left, is_whole, failures = case
    end = RunEnd(ending, GONE)
    assert after_run(end, failures, output_left=output_left, is_whole=is_whole) == verdict


def test_the_verdicts_cover_all_cases() -> None:
    covered = [case for cases, _ in VERDICTS for case in cases]
    assert sorted(covered, key=str) == sorted(product(Ending, BOTH, BOTH, FAILURES), key=str)


def test_a_lost_run_without_an_error_names_the_worker() -> None:
    for ending in (Ending.RELEASED, Ending.LOST):
        assert after_run(RunEnd(ending), output_left=True).error == WORKER_LOST
    last = after_run(RunEnd(Ending.LOST), MAX_LOST_RUNS - 1)
    assert last.error is not None
    assert last.error.message.endswith(WORKER_LOST.message)


def test_a_job_that_cannot_wait_for_room_fails_with_the_answer_of_its_engine() -> None:
    verdict = after_run(RunEnd(Ending.FULL, GONE), may_wait=False)
    assert verdict == Verdict(Event.FAIL, GONE, answered=True)


def test_the_output_of_a_run_does_not_change_its_verdict() -> None:
    for ending in Ending:
        assert after_run(RunEnd(ending, GONE, b"1")) == after_run(RunEnd(ending, GONE))


# The queues of an endpoint


class Queued(NamedTuple):
    """A job in one of the two queues, in the order of the sequences."""

    durable: bool
    low: bool


@given(
    credit=st.integers(0, 12),
    jobs=st.lists(st.builds(Queued, durable=st.booleans(), low=st.booleans()), max_size=20),
    listed=st.integers(0, 4),
)
def test_credit_is_shared_in_the_order_of_both_queues(
    credit: int, jobs: list[Queued], listed: int
) -> None:
    """Interactive jobs have normal priority. At least as many are listed as there is credit."""
    is_last = [job.durable and job.low for job in jobs]
    ordered = sorted(range(len(jobs)), key=lambda sequence: (is_last[sequence], sequence))
    served = [jobs[sequence].durable for sequence in ordered[:credit]]
    interactive = [sequence for sequence, job in enumerate(jobs) if not job.durable]

    def queued_before(bound: int | None) -> int:
        if bound is None:
            return sum(job.durable for job in jobs)
        return sum(job.durable and not job.low for job in jobs[:bound])

    shares = share_credit(credit, interactive[: credit + listed], queued_before)
    assert shares == (served.count(True), served.count(False))


# Webhooks and stuck workers


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
