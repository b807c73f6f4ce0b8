"""Each store is compared with a simple model, under random sequences of operations."""

import asyncio
from collections import Counter
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import pytest
from harness.data.jobs import ALICE, HERE, submission
from harness.data.store_steps import STORES, WHY, WORKER, purge
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    consumes,
    initialize,
    invariant,
    multiple,
    precondition,
    rule,
    run_state_machine_as_test,
)
from msgspec.structs import replace

from proxy.jobs.lifecycle import Event, Status
from proxy.jobs.model import Counts, Delivery, Job, JobId, Millis, Submission, SubmissionKey
from proxy.jobs.policy import LOW_PRIORITY_WAIT_MILLIS
from proxy.store.base import JobStore
from proxy.store.errors import OtherSubmissionError

pytestmark = pytest.mark.slow

RETENTION_MILLIS = 5_000
# The default of `submission`.
EXECUTION_MILLIS = 60_000
HOOK = "https://example.com"
NO_LIMIT = 10_000
KEYS = [SubmissionKey(name, body) for name in "xy" for body in (b"1", b"2")]
ENDS = {
    Event.COMPLETE: Status.COMPLETED,
    Event.FAIL: Status.FAILED,
    Event.CANCEL: Status.CANCELLED,
    Event.EXPIRE: Status.TIMED_OUT,
}
UNFINISHED = {Status.IN_QUEUE, Status.IN_PROGRESS}


@dataclass
class Row:
    """The model of a job.

    It is written by hand, so that it shares no code with a store.
    """

    place: int
    low: bool
    light: bool
    webhook: bool
    created: int
    status: Status = Status.IN_QUEUE
    attempt: int = 0
    run: int = 0
    failures: int = 0
    retry_count: int = 0
    taken: int = 0
    finished: int = 0
    retention: int = RETENTION_MILLIS
    expires: int | None = None
    key: SubmissionKey | None = None
    consumed_cursor: int = 0
    delivered: bool = False
    output: bytes | None = None
    log: list[bytes] = field(default_factory=list)
    # None if the job has no delivery.
    tries: int | None = None
    deliver_at: int = 0

    def deadline(self) -> int | None:
        """Return the time at which the job is due, or None."""
        ends = self.taken + EXECUTION_MILLIS if self.status is Status.IN_PROGRESS else None
        moments = [moment for moment in (ends, self.expires) if moment is not None]
        return min(moments, default=None) if self.status in UNFINISHED else None


class Run(NamedTuple):
    """A run that a worker has or had, with the number under which it was taken or adopted."""

    job_id: str
    attempt: int
    number: int


class StoreModel(RuleBasedStateMachine):
    """Runs each operation on a store and on a dictionary of rows."""

    kind = ""
    jobs = Bundle("jobs")
    runs = Bundle("runs")
    deliveries = Bundle("deliveries")

    @initialize()
    def begin(self) -> None:
        self.loop = asyncio.new_event_loop()
        self.folder = TemporaryDirectory()
        self.open()
        self.rows: dict[str, Row] = {}
        self.now = 1_000_000
        self.sequence = 0
        # The last number of a run.
        self.number = 0
        self.ended: Counter[Status | Event] = Counter()
        # The places and the sequences of jobs of another queue.
        self.foreign: dict[int, int] = {}

    def teardown(self) -> None:
        if hasattr(self, "loop"):
            self.run(self.opened.aclose())
            self.loop.close()
            self.folder.cleanup()

    def open(self) -> None:
        self.store: JobStore = STORES[self.kind](Path(self.folder.name))
        self.opened = AsyncExitStack()
        self.run(self.opened.enter_async_context(self.store.open()))

    def run(self, awaitable: Any) -> Any:
        return self.loop.run_until_complete(awaitable)

    def settle(self, job_id: str, event: Event, **more: Any) -> Job | None:
        job: Job | None = self.run(
            self.store.settle(JobId(job_id), event, now=Millis(self.now), **more)
        )
        return job

    def end(self, job_id: str, event: Event, output: bytes | None = None) -> None:
        row = self.rows[job_id]
        row.status = ENDS[event]
        row.finished = self.now
        row.output = output
        self.ended[row.status] += 1
        if row.webhook:
            row.tries = 0
            row.deliver_at = self.now

    def agree(self, job: Job | None, job_id: str) -> None:
        """Check that a job equals its row in the model."""
        row = self.rows[job_id]
        assert job is not None
        assert (job.status, job.attempt, job.failures) == (row.status, row.attempt, row.failures)
        assert job.run == row.run
        assert (job.retry_count, job.consumed_cursor, job.delivered, job.output) == (
            row.retry_count,
            row.consumed_cursor,
            row.delivered,
            row.output,
        )
        assert (job.submission.expires_at, job.submission.retention) == (row.expires, row.retention)
        assert job.created_at == row.created

    # Operations of clients

    @rule(
        target=jobs,
        low=st.booleans(),
        light=st.booleans(),
        webhook=st.booleans(),
        ttl=st.sampled_from([None, 999, EXECUTION_MILLIS // 2]),
        key=st.sampled_from([None, *KEYS]),
    )
    def submit(
        self, low: bool, light: bool, webhook: bool, ttl: int | None, key: SubmissionKey | None
    ) -> str:
        self.sequence += 1
        job_id = f"job-{self.sequence}"
        expires = None if ttl is None else self.now + ttl
        wanted = submission(
            job_id,
            low_priority=low,
            light=light,
            retention=Millis(RETENTION_MILLIS),
            expires_at=expires,
            webhook=HOOK if webhook else None,
            key=key,
        )
        for other, row in self.rows.items():
            if key is not None and row.key is not None and row.key.name == key.name:
                # No sequence is used.
                self.sequence -= 1
                self.submit_again(wanted, other, row)
                return other
        job = self.run(self.store.submit(wanted, Millis(self.now)))
        row = Row(self.sequence, low, light, webhook, self.now, expires=expires, key=key)
        self.rows[job_id] = row
        self.agree(job, job_id)
        return job_id

    def submit_again(self, wanted: Submission, job_id: str, row: Row) -> None:
        """Submit a job under the key of another one."""
        if row.key != wanted.key:
            with pytest.raises(OtherSubmissionError):
                self.run(self.store.submit(wanted, Millis(self.now)))
        else:
            again = self.run(self.store.submit(wanted, Millis(self.now)))
            assert again == self.run(self.store.get(HERE, ALICE, JobId(job_id)))

    @rule(job_id=jobs)
    def a_client_submits_again(self, job_id: str) -> None:
        if job_id in self.rows:
            again = self.run(self.store.submit(submission(job_id), Millis(self.now)))
            self.agree(again, job_id)

    @rule(job_id=jobs)
    def a_client_looks(self, job_id: str) -> None:
        job = self.run(self.store.find(JobId(job_id)))
        assert self.run(self.store.get(HERE, ALICE, JobId(job_id))) == (
            None if job is None else job.outline()
        )
        if job_id in self.rows:
            self.agree(job, job_id)
        else:
            assert job is None

    @rule(job_id=jobs, cursor=st.integers(0, 4), limit=st.integers(0, 4))
    def a_client_reads(self, job_id: str, cursor: int, limit: int) -> None:
        expected = self.rows[job_id].log[cursor : cursor + limit] if job_id in self.rows else []
        part, after = self.run(self.store.read(JobId(job_id), cursor, limit))
        assert (list(part), after) == (expected, cursor + len(expected))

    @rule(
        job_id=jobs,
        cursor=st.none() | st.integers(0, 4),
        limit=st.integers(0, 4),
        max_bytes=st.integers(0, 9),
    )
    def a_client_reads_a_page(
        self, job_id: str, cursor: int | None, limit: int, max_bytes: int
    ) -> None:
        found = self.run(
            self.store.look(HERE, ALICE, JobId(job_id), cursor, limit=limit, max_bytes=max_bytes)
        )
        row = self.rows.get(job_id)
        assert (found is None) == (row is None)
        if row is not None and found is not None:
            start = row.consumed_cursor if cursor is None else cursor
            rest = row.log[start:][:limit]
            number = max(n for n in range(len(rest) + 1) if size(rest[:n]) <= max_bytes)
            needed = size(rest[number : number + 1])
            assert (list(found.outputs), found.cursor) == (rest[:number], start + number)
            assert found.needed == needed
            assert found.job == self.run(self.store.get(HERE, ALICE, JobId(job_id)))

    @rule(job_id=jobs, cursor=st.none() | st.integers(0, 4), max_bytes=st.integers(0, 9))
    def a_client_reads_the_result(self, job_id: str, cursor: int | None, max_bytes: int) -> None:
        found = self.run(
            self.store.result(HERE, ALICE, JobId(job_id), max_bytes=max_bytes, cursor=cursor)
        )
        row = self.rows.get(job_id)
        assert (found is None) == (row is None)
        if row is None or found is None:
            return
        output = row.output if cursor is None and row.status not in UNFINISHED else None
        log = [] if row.status in UNFINISHED or output is not None else row.log[cursor or 0 :]
        assert found.size == size(log if output is None else [output])
        fits = found.size <= max_bytes
        assert (found.job.output, list(found.outputs)) == ((output, log) if fits else (None, []))
        outline = self.run(self.store.get(HERE, ALICE, JobId(job_id)))
        assert found.job == replace(outline, output=found.job.output)

    @rule(job_id=jobs, cursor=st.integers(0, 4), attempt=st.integers(0, 3))
    def a_client_consumes(self, job_id: str, cursor: int, attempt: int) -> None:
        is_recorded = self.run(self.store.consume(JobId(job_id), attempt, cursor))
        assert is_recorded == self.is_deliverable(job_id, attempt)
        if is_recorded:
            row = self.rows[job_id]
            row.consumed_cursor = max(row.consumed_cursor, cursor)
            row.delivered = True

    @rule(job_id=jobs, attempt=st.integers(0, 3))
    def output_is_delivered(self, job_id: str, attempt: int) -> None:
        is_recorded = self.run(self.store.deliver(JobId(job_id), attempt))
        assert is_recorded == self.is_deliverable(job_id, attempt)
        if is_recorded:
            self.rows[job_id].delivered = True

    def is_deliverable(self, job_id: str, attempt: int) -> bool:
        """Return True if the output of this attempt may be given to a client."""
        row = self.rows.get(job_id)
        return row is not None and row.attempt == attempt and row.status is not Status.IN_QUEUE

    @rule(job_id=jobs)
    def a_client_cancels(self, job_id: str) -> None:
        row = self.rows.get(job_id)
        happens = row is not None and row.status in UNFINISHED
        job = self.settle(job_id, Event.CANCEL, error=WHY)
        assert (job is not None) == happens
        if happens:
            self.end(job_id, Event.CANCEL)
            self.agree(job, job_id)

    @rule(job_id=jobs)
    def a_client_retries(self, job_id: str) -> None:
        row = self.rows.get(job_id)
        happens = row is not None and row.status in {Status.FAILED, Status.TIMED_OUT}
        job = self.settle(job_id, Event.RETRY)
        assert (job is not None) == happens
        if row is not None and happens:
            self.sequence += 1
            row.status = Status.IN_QUEUE
            row.failures = 0
            row.place = self.sequence
            row.retry_count += 1
            row.expires = None if row.expires is None else row.expires + self.now - row.created
            row.created = self.now
            row.consumed_cursor = 0
            row.delivered = False
            row.output = None
            row.log = []
            row.tries = None
            self.ended[Event.RETRY] += 1
            self.agree(job, job_id)

    @rule(job_id=jobs, life=st.sampled_from([0, 999, RETENTION_MILLIS]))
    def a_client_limits_a_life(self, job_id: str, life: int) -> None:
        row = self.rows.get(job_id)
        job = self.run(self.store.limit_life(JobId(job_id), Millis(self.now + life)))
        assert (job is not None) == (row is not None)
        if row is not None:
            if row.status in UNFINISHED:
                row.expires = self.now + life
            else:
                row.retention = self.now + life - row.finished
            self.agree(job, job_id)

    @rule()
    def a_client_purges(self) -> None:
        waiting = {job_id for job_id, row in self.rows.items() if row.status is Status.IN_QUEUE}
        self.sequence += 1
        self.foreign[self.sequence] = self.store.next_sequence()
        purged = self.run(purge(self.store, now=self.now, limit=3))
        assert {job.id for job in purged} == waiting
        for job_id in waiting:
            self.end(job_id, Event.CANCEL)

    # Operations of workers

    @rule(target=runs, limit=st.integers(0, 3), light_limit=st.integers(0, 3))
    def take(self, limit: int, light_limit: int) -> Any:
        def first(light: bool, count: int) -> list[str]:
            waiting = [
                (row.low and row.created + LOW_PRIORITY_WAIT_MILLIS > self.now, row.place, job_id)
                for job_id, row in self.rows.items()
                if row.status is Status.IN_QUEUE and row.light is light
            ]
            return [job_id for *_, job_id in sorted(waiting)[:count]]

        expected = first(False, limit) + first(True, light_limit)
        self.number += 1
        limits = {"limit": limit, "light_limit": light_limit}
        taken = self.run(
            self.store.take(HERE, WORKER, now=Millis(self.now), run=self.number, **limits)
        )
        assert [job.id for job in taken] == expected
        for job in taken:
            row = self.rows[job.id]
            row.status = Status.IN_PROGRESS
            row.attempt += 1
            row.run = self.number
            row.taken = self.now
            row.consumed_cursor = 0
            row.delivered = False
            row.log = []
            self.agree(job, job.id)
        return multiple(*(Run(job.id, job.attempt, job.run) for job in taken))

    def is_current(self, run: Run) -> bool:
        row = self.rows.get(run.job_id)
        return row is not None and row.status is Status.IN_PROGRESS and row.run == run.number

    @rule(
        run=runs, event=st.sampled_from(list(ENDS)), output=st.sampled_from([None, b"", b"output"])
    )
    def a_worker_ends_a_run(self, run: Run, event: Event, output: bytes | None) -> None:
        job_id = run.job_id
        row = self.rows.get(job_id)
        happens = self.is_current(run)
        if row is not None and row.status is Status.IN_QUEUE and row.run == run.number:
            happens = event in {Event.CANCEL, Event.EXPIRE}
        job = self.settle(job_id, event, run=run.number, error=WHY, output=output)
        assert (job is not None) == happens
        if job is not None:
            self.end(job_id, event, output)
            self.agree(job, job_id)
            assert job.error == WHY

    @rule(target=runs, run=runs)
    def a_worker_resumes_a_run(self, run: Run) -> Any:
        self.number += 1
        now = Millis(self.now)
        adopted = self.run(self.store.adopt(JobId(run.job_id), run.attempt, self.number, now))
        row = self.rows.get(run.job_id)
        if row is None or (row.status, row.attempt) != (Status.IN_PROGRESS, run.attempt):
            assert adopted is None
            return multiple()
        row.run = self.number
        assert adopted.cursor == len(row.log)
        self.agree(adopted.job, run.job_id)
        return run._replace(number=self.number)

    @rule(run=consumes(runs), counts=st.booleans(), undelivered=st.booleans())
    def a_run_is_lost(self, run: Run, counts: bool, undelivered: bool) -> None:
        job_id = run.job_id
        happens = self.is_current(run) and not (undelivered and self.rows[job_id].delivered)
        job = self.settle(
            job_id, Event.RELEASE, run=run.number, counts=counts, undelivered=undelivered
        )
        assert (job is not None) == happens
        if happens:
            row = self.rows[job_id]
            row.status = Status.IN_QUEUE
            row.failures += counts
            self.agree(job, job_id)

    @rule(run=runs, outputs=st.lists(st.binary(max_size=3), max_size=3))
    def a_worker_writes(self, run: Run, outputs: list[bytes]) -> None:
        cursor = self.run(self.store.append(JobId(run.job_id), run.number, outputs))
        happens = self.is_current(run)
        assert (cursor is not None) == happens
        if happens:
            self.rows[run.job_id].log += outputs
            assert cursor == len(self.rows[run.job_id].log)

    @rule(
        run=runs,
        start=st.integers(0, 3),
        outputs=st.lists(st.binary(max_size=3), max_size=3),
    )
    def a_log_is_corrected(self, run: Run, start: int, outputs: list[bytes]) -> None:
        row = self.rows.get(run.job_id)
        start = min(start, len(row.log)) if row is not None else start
        has_changed = self.run(self.store.rewrite(JobId(run.job_id), run.number, start, outputs))
        assert has_changed == (self.is_current(run) and not self.rows[run.job_id].delivered)
        if has_changed:
            self.rows[run.job_id].log[start:] = outputs

    # Hints for other queues

    @rule()
    def another_queue_takes_a_sequence(self) -> None:
        self.sequence += 1
        self.foreign[self.sequence] = self.store.next_sequence()

    @rule(light=st.booleans())
    def the_dispatcher_counts_queued_jobs(self, light: bool) -> None:
        rows = [
            row
            for row in self.rows.values()
            if row.status is Status.IN_QUEUE and row.light is light
        ]
        assert self.store.queued(HERE, light=light) == len(rows)
        for place, sequence in self.foreign.items():
            before = [row for row in rows if row.place < place]
            normal = sum(not row.low for row in before)
            # A take counts them as normal.
            late = sum(
                row.low and row.created + LOW_PRIORITY_WAIT_MILLIS <= self.now for row in before
            )
            found = self.store.queued(HERE, light=light, before=sequence)
            assert normal <= found <= normal + late

    # Time

    @rule(
        milliseconds=st.sampled_from(
            [1, 999, RETENTION_MILLIS, 3 * RETENTION_MILLIS, LOW_PRIORITY_WAIT_MILLIS]
        )
    )
    def time_passes(self, milliseconds: int) -> None:
        self.now += milliseconds
        over = {
            job_id
            for job_id, row in self.rows.items()
            if row.status not in UNFINISHED
            and row.finished + row.retention <= self.now
            and row.tries is None
        }
        assert self.run(self.store.forget(Millis(self.now), NO_LIMIT)) == len(over)
        for job_id in over:
            del self.rows[job_id]

    @rule()
    def the_deadlines_are_checked(self) -> None:
        deadlines = {job_id: row.deadline() for job_id, row in self.rows.items()}
        expected = {
            job_id: moment
            for job_id, moment in deadlines.items()
            if moment is not None and moment <= self.now
        }
        due = [job.id for job in self.run(self.store.due(Millis(self.now), NO_LIMIT))]
        assert set(due) == set(expected)
        assert [expected[job_id] for job_id in due] == sorted(expected.values())

    @rule(target=deliveries)
    def webhooks_are_sent(self) -> Any:
        expected = {
            job_id: row.deliver_at
            for job_id, row in self.rows.items()
            if row.tries is not None and row.deliver_at <= self.now
        }
        deliveries: list[Delivery] = list(
            self.run(self.store.deliveries(Millis(self.now), NO_LIMIT))
        )
        assert {one.job.id for one in deliveries} == set(expected)
        assert [expected[one.job.id] for one in deliveries] == sorted(expected.values())
        for one in deliveries:
            row = self.rows[one.job.id]
            assert (one.tries, one.job.attempt, one.job.retry_count) == (
                row.tries,
                row.attempt,
                row.retry_count,
            )
            assert (one.job.status, one.job.output) == (row.status, None)
        return multiple(*deliveries)

    @rule(delivery=deliveries, again=st.sampled_from([None, 1, RETENTION_MILLIS]))
    def a_webhook_was_tried(self, delivery: Delivery, again: int | None) -> None:
        self.run(self.store.tried(delivery, None if again is None else Millis(self.now + again)))
        job = delivery.job
        row = self.rows.get(job.id)
        if row is not None and (row.attempt, row.retry_count, row.tries) == (
            job.attempt,
            job.retry_count,
            delivery.tries,
        ):
            row.tries = None if again is None else delivery.tries + 1
            row.deliver_at = self.now + (again or 0)

    @precondition(lambda self: self.store.durable)
    @rule()
    def the_store_is_opened_again(self) -> None:
        self.run(self.opened.aclose())
        self.open()
        # Its jobs ended with the process.
        self.foreign = {}
        running = {job_id for job_id, row in self.rows.items() if row.status is Status.IN_PROGRESS}
        assert {job.id for job in self.run(self.store.running())} == running

    # Invariants

    @invariant()
    def they_agree(self) -> None:
        if not hasattr(self, "rows"):
            return
        jobs = self.run(self.store.recent(HERE, ALICE, before=None, limit=NO_LIMIT))
        assert [job.id for job in jobs] == sorted(
            self.rows, key=lambda job_id: -self.rows[job_id].place
        )
        for job in jobs:
            row = self.rows[job.id]
            assert (job.status, job.attempt, job.failures) == (
                row.status,
                row.attempt,
                row.failures,
            )
        standing = Counter(row.status for row in self.rows.values())
        assert self.run(self.store.counts(HERE)) == Counts(
            standing[Status.IN_QUEUE],
            standing[Status.IN_PROGRESS],
            *(self.ended[status] for status in ENDS.values()),
            retried=self.ended[Event.RETRY],
        )


def size(outputs: list[bytes]) -> int:
    return sum(map(len, outputs))


def check(kind: str, examples: int) -> None:
    machine = type("Model", (StoreModel,), {"kind": kind})
    slow = [HealthCheck.too_slow]
    run_state_machine_as_test(
        machine,
        settings=settings(
            max_examples=examples,
            stateful_step_count=60,
            deadline=None,
            suppress_health_check=slow,
            print_blob=True,
        ),
    )


@pytest.mark.parametrize("kind", STORES)
def test_a_store_agrees_with_the_model(kind: str) -> None:
    check(kind, examples=40)


@pytest.mark.torture
@pytest.mark.timeout(1_200)
@pytest.mark.parametrize("kind", STORES)
def test_a_store_agrees_with_the_model_for_many_examples(kind: str) -> None:
    check(kind, examples=2_000)
