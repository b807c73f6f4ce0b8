"""Interactive jobs: their queue, their runs, their ends, and what clients of the queue API see."""

import asyncio
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import pytest
from harness.data.clock import FakeClock
from harness.data.jobs import ALICE, HERE, REQUEST, submission
from harness.data.read_limits import ALL, reserve
from harness.data.store_steps import sqlite_store
from harness.tools.waiting import until
from harness.worker.port import Port
from msgspec import structs

from proxy.app import Parts, compose
from proxy.jobs.lifecycle import Event, Status
from proxy.jobs.model import (
    Counts,
    Cursor,
    EndpointId,
    Head,
    InteractiveJob,
    Job,
    JobError,
    JobId,
    Millis,
    Outcome,
    Owner,
    WorkerId,
)
from proxy.jobs.policy import CANCELLED, MAX_LOST_RUNS, Ending, RunEnd
from proxy.service.durable import NotRetriableError
from proxy.service.endpoints import Endpoint
from proxy.service.events import LocalSignal
from proxy.service.interactive import CLIENT_LEFT, DRAINING
from proxy.service.mailbox import Mailbox
from proxy.service.worker import Worker
from proxy.settings import MEMORY, Settings
from proxy.system import System

BOB = Owner("bob")
WORKER = WorkerId("w-1")
OTHER = Endpoint(EndpointId("other"))
STREAM = Head(200, "text/event-stream")
WHY = JobError("because", "Because.")
COMPLETED = RunEnd(Ending.COMPLETED)
RELEASED = RunEnd(Ending.RELEASED)
LOST = RunEnd(Ending.LOST, WHY)


@pytest.fixture
def endpoint(parts: Parts) -> Endpoint:
    [endpoint] = parts.endpoints
    return endpoint


@pytest.fixture
def worker(parts: Parts) -> Worker:
    """Return a worker of the fleet."""
    worker = Worker(WORKER, HERE, Port(), seen=0.0, slots=9)
    parts.fleet.add(worker)
    return worker


def call(
    parts: Parts,
    *,
    light: bool = False,
    queue_timeout: float | None = None,
    owner: Owner = ALICE,
    endpoint: Endpoint | None = None,
) -> Mailbox:
    """Put a job into the queue, by default of the only endpoint."""
    [only] = parts.endpoints
    return parts.interactive.call(
        endpoint or only, owner, REQUEST, light=light, queue_timeout=queue_timeout
    )


def take(
    parts: Parts, limit: int = 10, *, light: bool = False, endpoint: EndpointId = HERE
) -> list[Mailbox]:
    """Hand out jobs to `WORKER`, and begin their runs if the fleet has it."""
    taken = parts.interactive.take(endpoint, WORKER, limit, light=light)
    worker = parts.fleet.get(WORKER)
    for mailbox in taken:
        if worker is not None and worker.port is not None:
            worker.hold(mailbox.job, mailbox, since=0.0)
            mailbox.begin(mailbox.job.attempt, worker.port)
    return taken


def started(parts: Parts) -> Mailbox:
    """Return the mailbox of a job that runs."""
    mailbox = call(parts)
    assert take(parts) == [mailbox]
    return mailbox


def stops(worker: Worker) -> list[tuple[str, str, int]]:
    """Return the stop requests that the worker has received."""
    assert isinstance(worker.port, Port)
    return [message for message in worker.port.messages if message[0] == "stop"]


def send_output(mailbox: Mailbox) -> None:
    """Send output of the current run to the client, as the relay does."""
    attempt = mailbox.job.attempt
    mailbox.head(attempt, STREAM)
    mailbox.chunk(attempt, b"data: 1\n\n", more=False)
    mailbox.consume()
    mailbox.left = True


def ids(jobs: Iterable[Job | Mailbox]) -> list[str]:
    return [job.job.id if isinstance(job, Mailbox) else job.id for job in jobs]


# The queue


def test_jobs_leave_in_the_order_of_their_calls(parts: Parts) -> None:
    calls = [call(parts) for _ in range(5)]
    assert take(parts, 2) == calls[:2]
    calls.append(call(parts))
    assert take(parts, 3) == calls[2:5]
    assert take(parts) == calls[5:]
    assert take(parts) == []


def test_a_job_has_the_limits_of_its_endpoint(parts: Parts, clock: FakeClock) -> None:
    limited = replace(
        OTHER, queue_timeout=Millis(7_000), execution_timeout=Millis(9_000), max_answer=10
    )
    mailbox = call(parts, endpoint=limited, owner=BOB, light=True)
    job = mailbox.job
    assert job.submission == submission(
        job.id,
        endpoint=limited.id,
        owner=BOB,
        light=True,
        queued_until=clock.now() + 7_000,
        execution_timeout=Millis(9_000),
    )
    assert (job.status, job.attempt, job.created_at) == (Status.IN_QUEUE, 0, clock.now())
    assert not mailbox.is_taken


def test_a_taken_job_has_its_worker_and_time(parts: Parts, clock: FakeClock) -> None:
    mailbox = call(parts)
    clock.pass_time(1)
    take(parts)
    job = mailbox.job
    assert (job.status, job.worker, job.taken_at, job.attempt) == (
        Status.IN_PROGRESS,
        WORKER,
        clock.now(),
        1,
    )
    assert mailbox.is_taken


def test_light_jobs_have_a_queue_of_their_own(parts: Parts) -> None:
    ordinary = [call(parts), call(parts)]
    light = [call(parts, light=True), call(parts, light=True)]
    assert take(parts, 1, light=True) == light[:1]
    assert take(parts) == ordinary
    assert take(parts, light=True) == light[1:]


def test_endpoints_have_queues_of_their_own(parts: Parts) -> None:
    here = call(parts)
    there = call(parts, endpoint=OTHER)
    assert take(parts, endpoint=OTHER.id) == [there]
    assert take(parts) == [here]


def test_the_dispatcher_sees_the_first_queued_jobs(parts: Parts) -> None:
    calls = [call(parts) for _ in range(4)]
    light = call(parts, light=True)
    call(parts, endpoint=OTHER)
    sequences = [mailbox.job.sequence for mailbox in calls]
    interactive = parts.interactive
    assert interactive.first(HERE, 3, light=False) == sequences[:3]
    assert interactive.first(HERE, 9, light=True) == [light.job.sequence]
    assert (interactive.queued(HERE, light=False), interactive.queued(HERE, light=True)) == (4, 1)
    [first] = take(parts, 1)
    interactive.cancel(HERE, ALICE, calls[1].job.id)
    assert interactive.first(HERE, 9, light=False) == sequences[2:]
    assert interactive.queued(HERE, light=False) == 2
    first.end(1, RELEASED)
    assert interactive.first(HERE, 9, light=False) == [sequences[0], *sequences[2:]]


@pytest.mark.parametrize("end", [RELEASED, LOST])
def test_a_job_that_comes_back_is_first_in_the_queue(parts: Parts, end: RunEnd) -> None:
    first, second, third = (call(parts) for _ in range(3))
    take(parts, 2)
    call_later = call(parts)
    second.end(1, end)
    first.end(1, end)
    job = first.job
    assert (job.status, job.worker, job.taken_at) == (Status.IN_QUEUE, None, None)
    assert not first.is_taken
    assert take(parts) == [first, second, third, call_later]
    assert [mailbox.job.attempt for mailbox in (first, second, third)] == [2, 2, 1]


async def test_a_new_job_and_one_that_comes_back_wake_the_dispatcher(parts: Parts) -> None:
    signal = parts.fleet._signal
    assert isinstance(signal, LocalSignal)
    mailbox = call(parts)
    assert await signal.wait(HERE, 0.0)
    take(parts)
    assert not await signal.wait(HERE, 0.0)
    mailbox.end(1, RELEASED)
    assert await signal.wait(HERE, 0.0)


# The ends of runs


@pytest.mark.parametrize(
    ("end", "status", "outcome"),
    [
        (COMPLETED, Status.COMPLETED, Outcome(answered=True)),
        (RunEnd(Ending.FAILED, WHY), Status.FAILED, Outcome(answered=True, error=WHY)),
        (RunEnd(Ending.REFUSED, WHY), Status.FAILED, Outcome(answered=False, error=WHY)),
    ],
)
def test_the_end_of_a_run_is_the_end_of_its_job(
    parts: Parts, clock: FakeClock, end: RunEnd, status: Status, outcome: Outcome
) -> None:
    mailbox = started(parts)
    clock.pass_time(1)
    mailbox.end(1, end)
    job = mailbox.job
    assert (job.status, job.error, job.finished_at) == (status, outcome.error, clock.now())
    assert mailbox.outcome == outcome
    assert (job.attempt, job.failures, job.worker) == (1, 0, WORKER)


def test_only_a_loss_counts_as_a_failure(parts: Parts) -> None:
    mailbox = call(parts)
    for end, failures in ((RELEASED, 0), (LOST, 1), (RELEASED, 1), (LOST, 2)):
        take(parts)
        mailbox.end(mailbox.job.attempt, end)
        assert (mailbox.job.failures, mailbox.job.status) == (failures, Status.IN_QUEUE)
    assert mailbox.outcome is None


def test_a_job_ends_after_too_many_lost_runs(parts: Parts) -> None:
    mailbox = call(parts)
    for attempt in range(1, MAX_LOST_RUNS + 1):
        assert mailbox.outcome is None
        take(parts)
        mailbox.end(attempt, LOST)
    assert mailbox.job.status is Status.FAILED
    assert mailbox.outcome is not None
    assert not mailbox.outcome.answered
    assert mailbox.outcome.error is not None
    assert mailbox.outcome.error.code == "gave_up"
    assert take(parts) == []


@pytest.mark.parametrize("end", [RELEASED, LOST])
def test_a_run_whose_output_was_sent_is_not_repeated(parts: Parts, end: RunEnd) -> None:
    mailbox = started(parts)
    send_output(mailbox)
    mailbox.end(1, end)
    assert mailbox.job.status is Status.FAILED
    assert mailbox.outcome is not None
    assert not mailbox.outcome.answered
    assert mailbox.outcome.error is not None
    assert take(parts) == []


@pytest.mark.parametrize("end", [RELEASED, LOST])
def test_a_run_whose_output_was_sent_completely_is_not_lost(parts: Parts, end: RunEnd) -> None:
    mailbox = started(parts)
    send_output(mailbox)
    mailbox.is_whole = True
    mailbox.end(1, end)
    assert mailbox.job.status is Status.COMPLETED
    assert mailbox.outcome == Outcome(answered=True)


def test_a_job_that_comes_back_has_no_output_of_the_lost_run(parts: Parts) -> None:
    mailbox = started(parts)
    mailbox.head(1, STREAM)
    mailbox.chunk(1, b"data: old\n\n", more=False)
    mailbox.end(1, LOST)
    assert (mailbox.response_head, mailbox.consume()) == (None, b"")
    take(parts)
    mailbox.head(2, STREAM)
    mailbox.chunk(2, b"data: new\n\n", more=False)
    assert mailbox.consume() == b"data: new\n\n"


def test_output_of_a_lost_run_does_not_reach_the_client_of_a_queued_job(parts: Parts) -> None:
    """Its worker may go on sending: it was considered lost, or has not received the stop."""
    mailbox = started(parts)
    mailbox.end(1, LOST)
    mailbox.head(1, STREAM)
    mailbox.chunk(1, b"data: late\n\n", more=False)
    assert (mailbox.response_head, mailbox.consume()) == (None, b"")


@pytest.mark.parametrize("late", [COMPLETED, RunEnd(Ending.REFUSED, WHY), RELEASED, LOST])
def test_a_late_end_of_an_earlier_attempt_changes_nothing(parts: Parts, late: RunEnd) -> None:
    mailbox = started(parts)
    mailbox.end(1, RELEASED)
    queued = mailbox.job.outline()
    mailbox.end(1, late)
    assert (mailbox.job.outline(), mailbox.outcome) == (queued, None)
    take(parts)
    running = mailbox.job.outline()
    mailbox.end(1, late)
    assert (mailbox.job.outline(), mailbox.outcome) == (running, None)
    mailbox.end(2, COMPLETED)
    assert mailbox.job.status is Status.COMPLETED


def test_the_first_end_counts(parts: Parts) -> None:
    mailbox = started(parts)
    mailbox.end(1, COMPLETED)
    ended = mailbox.job.outline()
    for end in (RunEnd(Ending.FAILED, WHY), RELEASED, LOST):
        mailbox.end(1, end)
    parts.interactive.cancel(HERE, ALICE, mailbox.job.id)
    parts.interactive.hang_up(mailbox)
    assert (mailbox.job.outline(), mailbox.outcome) == (ended, Outcome(answered=True))
    assert parts.interactive.counts(HERE) == Counts(completed=1)


def test_events_that_the_lifecycle_does_not_allow_change_nothing() -> None:
    job = InteractiveJob(submission("a"), sequence=1, created_at=Millis(0))
    queued = job.outline()
    assert not job.release(counts=True)
    assert not job.end(Event.COMPLETE, None, Millis(1))
    assert not job.end(Event.FAIL, WHY, Millis(1))
    assert job.outline() == queued
    assert job.end(Event.CANCEL, WHY, Millis(2))
    ended = job.outline()
    for event in (Event.COMPLETE, Event.FAIL, Event.CANCEL, Event.EXPIRE):
        assert not job.end(event, None, Millis(3))
    assert not job.release(counts=True)
    assert job.outline() == ended


# Cancellations


async def test_a_queued_job_is_cancelled(parts: Parts, clock: FakeClock) -> None:
    first, second = call(parts), call(parts)
    job = parts.interactive.cancel(HERE, ALICE, first.job.id)
    assert job is not None
    assert (job.status, job.error, job.finished_at, job.attempt) == (
        Status.CANCELLED,
        CANCELLED,
        clock.now(),
        0,
    )
    assert first.outcome == Outcome(answered=False, error=CANCELLED)
    assert take(parts) == [second]


async def test_a_cancelled_job_stops_its_run(parts: Parts, worker: Worker) -> None:
    mailbox = started(parts)
    job = parts.interactive.cancel(HERE, ALICE, mailbox.job.id)
    assert job is not None
    assert job.status is Status.CANCELLED
    assert stops(worker) == [("stop", mailbox.job.id, 1)]
    assert worker.held == 1, "the slot is occupied until the worker has ended the run"
    parts.fleet.end_run(worker, mailbox.job.id, 1, COMPLETED)
    assert worker.held == 0
    assert mailbox.job.status is Status.CANCELLED


async def test_a_job_that_has_ended_is_not_cancelled(parts: Parts) -> None:
    mailbox = started(parts)
    mailbox.end(1, COMPLETED)
    for _ in range(2):
        job = parts.interactive.cancel(HERE, ALICE, mailbox.job.id)
        assert job is not None
        assert job.status is Status.COMPLETED
        if len(parts.interactive):
            parts.interactive.hang_up(mailbox)


def test_another_owner_or_endpoint_does_not_find_a_job(parts: Parts) -> None:
    mailbox = call(parts)
    job_id = mailbox.job.id
    for endpoint, owner, name in (
        (HERE, BOB, job_id),
        (OTHER.id, ALICE, job_id),
        (HERE, ALICE, JobId("unknown")),
    ):
        assert parts.interactive.get(endpoint, owner, name) is None
        assert parts.interactive.cancel(endpoint, owner, name) is None
    assert mailbox.job.status is Status.IN_QUEUE
    assert parts.interactive.get(HERE, ALICE, job_id) == mailbox.job.outline()


async def test_a_purge_cancels_the_queued_jobs_of_an_owner(parts: Parts) -> None:
    running = started(parts)
    purged = [call(parts), call(parts, light=True), call(parts)]
    others = [call(parts, owner=BOB), call(parts, endpoint=OTHER)]
    assert parts.interactive.purge(HERE, ALICE) == 3
    assert {mailbox.job.status for mailbox in purged} == {Status.CANCELLED}
    assert {mailbox.outcome for mailbox in purged} == {Outcome(answered=False, error=CANCELLED)}
    assert running.job.status is Status.IN_PROGRESS
    assert {mailbox.job.status for mailbox in others} == {Status.IN_QUEUE}
    assert take(parts) == others[:1]
    assert parts.interactive.purge(HERE, ALICE) == 0


# Deadlines


def expired(parts: Parts, mailbox: Mailbox) -> str:
    """End overdue jobs; return the error code of this job, or an empty text."""
    parts.interactive.end_overdue()
    if mailbox.outcome is None:
        return ""
    assert mailbox.job.status is Status.TIMED_OUT
    assert not mailbox.outcome.answered
    assert mailbox.outcome.error is not None
    return mailbox.outcome.error.code


@pytest.mark.parametrize(("queue_timeout", "seconds"), [(None, 300), (2.5, 2.5), (9_999, 300)])
def test_a_job_that_no_worker_takes_in_time_is_timed_out(
    parts: Parts, clock: FakeClock, queue_timeout: float | None, seconds: float
) -> None:
    mailbox = call(parts, queue_timeout=queue_timeout)
    running = call(parts, queue_timeout=queue_timeout, light=True)
    take(parts, light=True)
    clock.pass_time(seconds - 0.001)
    assert expired(parts, mailbox) == ""
    clock.pass_time(0.001)
    assert expired(parts, mailbox) == "no_workers"
    assert running.outcome is None
    assert take(parts) == []


def test_a_queue_timeout_after_a_lost_run_names_the_loss(parts: Parts, clock: FakeClock) -> None:
    mailbox = started(parts)
    mailbox.end(1, LOST)
    clock.pass_time(300)
    assert expired(parts, mailbox) == "worker_lost"


async def test_a_run_that_takes_too_long_is_timed_out_and_stopped(
    parts: Parts, clock: FakeClock, worker: Worker
) -> None:
    mailbox = call(parts)
    clock.pass_time(100)
    take(parts)
    clock.pass_time(599.999)
    assert expired(parts, mailbox) == ""
    assert stops(worker) == []
    clock.pass_time(0.001)
    assert expired(parts, mailbox) == "execution_timeout"
    assert stops(worker) == [("stop", mailbox.job.id, 1)]


async def test_a_run_whose_output_is_whole_is_completed_when_its_end_is_overdue(
    parts: Parts, clock: FakeClock, worker: Worker
) -> None:
    mailbox = started(parts)
    mailbox.is_whole = True
    clock.pass_time(600)
    parts.interactive.end_overdue()
    assert mailbox.outcome is not None
    assert mailbox.outcome.answered
    assert mailbox.job.status is Status.COMPLETED
    assert stops(worker) == [("stop", mailbox.job.id, 1)]


def test_all_overdue_jobs_end_in_one_round(parts: Parts, clock: FakeClock) -> None:
    calls = [call(parts, queue_timeout=float(number % 7)) for number in range(1_000)]
    clock.pass_time(5)
    parts.interactive.end_overdue()
    for number, mailbox in enumerate(calls):
        assert (mailbox.job.status is Status.TIMED_OUT) == (number % 7 <= 5)


# Clients


async def test_the_job_of_a_client_that_leaves_is_cancelled(parts: Parts, worker: Worker) -> None:
    running, queued = started(parts), call(parts)
    parts.interactive.hang_up(running)
    parts.interactive.hang_up(queued)
    for mailbox in (running, queued):
        assert (mailbox.job.status, mailbox.job.error) == (Status.CANCELLED, CLIENT_LEFT)
    assert stops(worker) == [("stop", running.job.id, 1)]
    assert take(parts) == []
    assert len(parts.interactive) == 0


async def test_the_job_of_a_client_that_leaves_with_the_whole_answer_is_completed(
    parts: Parts, worker: Worker
) -> None:
    mailbox = started(parts)
    send_output(mailbox)
    mailbox.is_whole = True
    parts.interactive.hang_up(mailbox)
    assert (mailbox.job.status, mailbox.job.error) == (Status.COMPLETED, None)
    assert stops(worker) == [("stop", mailbox.job.id, 1)]


async def test_a_job_whose_answer_was_passed_on_is_completed_and_stopped(
    parts: Parts, worker: Worker
) -> None:
    mailbox = started(parts)
    parts.interactive.passed_on(mailbox)
    parts.interactive.passed_on(mailbox)
    assert (mailbox.job.status, mailbox.outcome) == (Status.COMPLETED, Outcome(answered=True))
    assert stops(worker) == [("stop", mailbox.job.id, 1)]


async def test_all_mailboxes_have_the_same_clock(parts: Parts) -> None:
    calls = [call(parts), call(parts)]
    waits = [asyncio.create_task(mailbox.wait(10.0)) for mailbox in calls]
    await asyncio.sleep(0)
    parts.interactive.tick(10.0)
    await asyncio.gather(*waits)


# The shutdown


async def test_a_shutdown_cancels_the_jobs_that_no_worker_has_taken(parts: Parts) -> None:
    running, back, queued = call(parts), call(parts), call(parts)
    take(parts, 2)
    back.end(1, RELEASED)
    parts.interactive.end_waiting()
    assert running.outcome is None
    assert {back.outcome, queued.outcome} == {Outcome(answered=False, error=DRAINING)}
    assert not await parts.interactive.wait_empty(0.0)


async def test_a_shutdown_ends_the_jobs_that_still_run(parts: Parts, worker: Worker) -> None:
    running, whole = call(parts), call(parts)
    take(parts)
    send_output(whole)
    whole.is_whole = True
    parts.interactive.end_running()
    assert running.outcome == Outcome(answered=False, error=DRAINING)
    assert whole.outcome == Outcome(answered=True)
    assert sorted(stops(worker)) == sorted(("stop", one.job.id, 1) for one in (running, whole))


async def test_a_shutdown_waits_for_the_clients(parts: Parts) -> None:
    assert await parts.interactive.wait_empty(0.0)
    first, second = call(parts), call(parts)
    waiting = asyncio.create_task(parts.interactive.wait_empty(10.0))
    parts.interactive.hang_up(first)
    assert not await parts.interactive.wait_empty(0.0)
    parts.interactive.hang_up(second)
    async with asyncio.timeout(5):
        assert await waiting


# Jobs of both kinds


async def submit(parts: Parts, clock: FakeClock, job_id: str, **changed: object) -> Job:
    """Put a durable job into the store."""
    return await parts.store.submit(submission(job_id, **changed), clock.now())


async def test_counts_are_those_of_both_kinds(parts: Parts, clock: FakeClock) -> None:
    for name in "abc":
        await submit(parts, clock, name)
    await parts.runs.take(HERE, WORKER, 1, light=False, run=1)
    calls = [call(parts) for _ in range(8)]
    take(parts, 5)
    calls[0].end(1, COMPLETED)
    calls[1].end(1, RunEnd(Ending.FAILED, WHY))
    calls[2].end(1, RELEASED)
    parts.interactive.cancel(HERE, ALICE, calls[3].job.id)
    parts.interactive.hang_up(calls[5])
    call(parts, endpoint=OTHER)
    assert parts.interactive.counts(HERE) == Counts(
        in_queue=3, in_progress=1, completed=1, failed=1, cancelled=2
    )
    assert await parts.view.counts(HERE) == Counts(
        in_queue=5, in_progress=2, completed=1, failed=1, cancelled=2
    )
    clock.pass_time(300)
    parts.interactive.end_overdue()
    assert (await parts.view.counts(HERE)).timed_out == 3
    assert await parts.view.counts(OTHER.id) == Counts(in_queue=0, timed_out=1)


def test_the_sum_of_counts_adds_each_status() -> None:
    assert Counts(1, 2, 3, 4, 5, 6, 7) + Counts(10, 20, 30, 40, 50, 60, 70) == Counts(
        11, 22, 33, 44, 55, 66, 77
    )


async def test_recent_jobs_of_both_kinds_are_listed_in_one_order(
    parts: Parts, clock: FakeClock, endpoint: Endpoint
) -> None:
    calls = [call(parts)]
    expected = ids(calls)
    expected += ids([await submit(parts, clock, "a"), await submit(parts, clock, "b")])
    calls += [call(parts), call(parts)]
    expected += ids(calls[1:])
    expected += ids([await submit(parts, clock, "c")])
    call(parts, owner=BOB)
    call(parts, endpoint=OTHER)
    await submit(parts, clock, "bob's", owner=BOB)
    # Ended jobs are listed too, with and without a client that still waits.
    take(parts, 1)
    calls[0].end(1, COMPLETED)
    parts.interactive.hang_up(calls[0])
    parts.interactive.cancel(HERE, ALICE, calls[1].job.id)

    async def page(before: int | None, limit: int = 4, status: Status | None = None) -> list[Job]:
        return list(
            await parts.view.recent(endpoint, ALICE, before=before, limit=limit, status=status)
        )

    first = await page(None)
    second = await page(first[-1].sequence)
    assert ids(first + second) == expected[::-1]
    assert await page(second[-1].sequence) == []
    assert ids(await page(None, 9)) == expected[::-1]
    queued = [expected[5], expected[4], expected[2], expected[1]]
    assert ids(await page(None, 9, Status.IN_QUEUE)) == queued
    assert ids(await page(None, 9, Status.COMPLETED)) == ids(calls[:1])
    assert ids(await page(None, 9, Status.CANCELLED)) == ids(calls[1:2])


async def test_listed_jobs_omit_large_values(parts: Parts, endpoint: Endpoint) -> None:
    mailboxes = [started(parts), call(parts), call(parts)]
    parts.interactive.cancel(HERE, ALICE, mailboxes[2].job.id)
    jobs = [
        *await parts.view.recent(endpoint, ALICE, before=None, limit=9, status=None),
        *[await parts.view.get(endpoint, ALICE, one) for one in ids(mailboxes)],
    ]
    assert len(jobs) == 6
    for job in jobs:
        assert job is not None
        assert (job.submission.work, job.output) == (structs.replace(REQUEST, body=b""), None)


async def test_a_queue_position_counts_jobs_of_both_kinds(parts: Parts, clock: FakeClock) -> None:
    jobs = [
        await submit(parts, clock, "low", low_priority=True),
        await submit(parts, clock, "a"),
        call(parts).job,
        await submit(parts, clock, "b"),
        call(parts).job,
        call(parts, light=True).job,
    ]
    assert [parts.interactive.ahead(job) for job in jobs] == [4, 0, 1, 2, 3, 0]
    take(parts, 1)
    assert [parts.interactive.ahead(job) for job in jobs[3:]] == [1, 2, 0]
    await parts.runs.take(HERE, WORKER, 1, light=False, run=1)
    assert [parts.interactive.ahead(job) for job in jobs[3:]] == [0, 1, 0]


async def test_jobs_of_both_kinds_share_one_order_after_a_restart(tmp_path: Path) -> None:
    settings = Settings(store=MEMORY, data_dir=tmp_path)
    path = tmp_path / "jobs.db"
    clock = FakeClock()

    def start() -> Parts:
        return compose(settings, System(clock=clock), sqlite_store(path))

    parts = start()
    async with parts.store.open():
        call(parts)
        jobs = [await submit(parts, clock, "a"), await submit(parts, clock, "b")]
    parts = start()
    async with parts.store.open():
        first, c, second = call(parts), await submit(parts, clock, "c"), call(parts)
        ordered = [*jobs, first.job, c, second.job]
        assert [parts.interactive.ahead(job) for job in ordered] == [0, 1, 2, 3, 4]
        assert take(parts) == [first, second]
        assert ids(await parts.runs.take(HERE, WORKER, 9, light=False, run=1)) == ["a", "b", "c"]
        assert await parts.store.find(first.job.id) is None


# The queue API


async def test_the_end_of_a_job_ends_the_wait_for_it(parts: Parts, endpoint: Endpoint) -> None:
    mailbox = started(parts)
    waiting = asyncio.create_task(
        parts.view.wait_end(endpoint, ALICE, mailbox.job.id, 10.0, reserve)
    )
    await until(lambda: len(parts.events) > 0, what="the client waits")
    mailbox.end(1, COMPLETED)
    async with asyncio.timeout(5):
        found = await waiting
    assert found is not None
    assert found[0].status is Status.COMPLETED


async def test_an_interactive_job_cannot_be_retried(parts: Parts, endpoint: Endpoint) -> None:
    mailbox = started(parts)
    mailbox.end(1, RunEnd(Ending.FAILED, WHY))
    with pytest.raises(NotRetriableError, match="cannot be retried"):
        await parts.durable.retry(endpoint, ALICE, mailbox.job.id)
    assert mailbox.job.status is Status.FAILED
    assert await parts.durable.retry(endpoint, BOB, mailbox.job.id) is None


async def test_an_interactive_job_has_no_output_to_read(parts: Parts, endpoint: Endpoint) -> None:
    mailbox = started(parts)
    send_output(mailbox)
    job_id = mailbox.job.id
    outline = mailbox.job.outline()
    start = Cursor(0, 0)
    page = await parts.view.read(endpoint, ALICE, job_id, start, 0.0, ALL)
    assert page == (outline, (), Cursor(1, 0), False)
    assert await parts.view.result(endpoint.id, ALICE, job_id, reserve) == (outline, ())
    assert await parts.view.read(endpoint, BOB, job_id, start, 0.0, ALL) is None
    mailbox.end(1, COMPLETED)
    assert await parts.durable.consume(endpoint, ALICE, job_id, 10.0, ALL) == (
        mailbox.job.outline(),
        (),
    )


async def test_the_life_of_an_interactive_job_cannot_be_limited(
    parts: Parts, clock: FakeClock
) -> None:
    mailbox = call(parts)
    assert await parts.durable.limit_life(mailbox.job.outline(), Millis(1)) is None
    clock.pass_time(1)
    parts.interactive.end_overdue()
    assert mailbox.job.status is Status.IN_QUEUE
