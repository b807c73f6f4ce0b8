"""Any store, against the simplest model of one: whatever is done in whatever order, they agree."""

import asyncio
from dataclasses import dataclass
from typing import Any

from harness.jobs import ALICE, HERE, submission
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, initialize, invariant, multiple, rule

from proxy.jobs.lifecycle import Event, Status
from proxy.jobs.model import JobError, JobId, Millis, WorkerId
from proxy.jobs.policy import MAX_FAILURES
from proxy.store.base import JobStore
from proxy.store.memory import MemoryStore

WHY = JobError("because", "Because.")
RETENTION = 5_000
ENDS = {
    Event.COMPLETE: Status.COMPLETED,
    Event.FAIL: Status.FAILED,
    Event.CANCEL: Status.CANCELLED,
    Event.EXPIRE: Status.TIMED_OUT,
}


@dataclass
class Row:
    """What the model knows of a job: written out by hand, so that it shares no code with a store."""

    status: Status
    place: tuple[bool, int]
    light: bool
    durable: bool
    attempt: int = 0
    failures: int = 0
    finished: int = 0


class StoreModel(RuleBasedStateMachine):
    """A store beside a dictionary of rows."""

    jobs = Bundle("jobs")
    runs = Bundle("runs")

    def make(self) -> JobStore:
        """The store under test; another store's model overrides this."""
        return MemoryStore()

    @initialize()
    def begin(self) -> None:
        self.loop = asyncio.new_event_loop()
        self.store = self.make()
        self.rows: dict[str, Row] = {}
        self.now = 1_000_000
        self.sequence = 0
        self.ended = dict.fromkeys(ENDS.values(), 0)

    def teardown(self) -> None:
        if hasattr(self, "loop"):
            self.loop.close()

    def run(self, awaitable: Any) -> Any:
        return self.loop.run_until_complete(awaitable)

    def settle(self, job_id: str, event: Event, **more: Any) -> Any:
        return self.run(self.store.settle(JobId(job_id), event, now=Millis(self.now), **more))

    def end(self, job_id: str, event: Event) -> None:
        row = self.rows[job_id]
        row.status, row.finished = ENDS[event], self.now
        self.ended[row.status] += 1

    @rule(target=jobs, low=st.booleans(), light=st.booleans(), durable=st.booleans())
    def submit(self, low: bool, light: bool, durable: bool) -> str:
        job_id = f"job-{self.sequence}"
        self.sequence += 1
        wanted = submission(job_id, low_priority=low, light=light, durable=durable, retention=Millis(RETENTION))
        job = self.run(self.store.submit(wanted, Millis(self.now)))
        assert job.status is Status.IN_QUEUE
        self.rows[job_id] = Row(Status.IN_QUEUE, (low, self.sequence), light, durable)
        return job_id

    @rule(target=runs, limit=st.integers(0, 3), light_limit=st.integers(0, 3))
    def take(self, limit: int, light_limit: int) -> Any:
        def first(light: bool, count: int) -> list[str]:
            waiting = [
                (row.place, job_id)
                for job_id, row in self.rows.items()
                if row.status is Status.IN_QUEUE and row.light is light
            ]
            return [job_id for _, job_id in sorted(waiting)[:count]]

        expected = first(False, limit) + first(True, light_limit)
        taken = self.run(
            self.store.take(HERE, WorkerId("w"), limit=limit, light_limit=light_limit, now=Millis(self.now))
        )
        assert [job.id for job in taken] == expected
        for job in taken:
            row = self.rows[job.id]
            row.status, row.attempt = Status.IN_PROGRESS, row.attempt + 1
            assert job.attempt == row.attempt
        return multiple(*((job.id, job.attempt) for job in taken))

    @rule(run=runs, event=st.sampled_from([Event.COMPLETE, Event.FAIL, Event.CANCEL, Event.EXPIRE]))
    def a_worker_ends_a_run(self, run: tuple[str, int], event: Event) -> None:
        job_id, attempt = run
        row = self.rows.get(job_id)
        happens = row is not None and row.status is Status.IN_PROGRESS and row.attempt == attempt
        if row is not None and row.status is Status.IN_QUEUE and row.attempt == attempt:
            happens = event in {Event.CANCEL, Event.EXPIRE}
        job = self.settle(job_id, event, attempt=attempt, error=WHY)
        assert (job is not None) == happens
        if happens:
            self.end(job_id, event)
            assert job.error == WHY

    @rule(run=consumes(runs), counts=st.booleans())
    def a_run_is_lost(self, run: tuple[str, int], counts: bool) -> None:
        job_id, attempt = run
        row = self.rows.get(job_id)
        happens = row is not None and row.status is Status.IN_PROGRESS and row.attempt == attempt
        job = self.settle(job_id, Event.RELEASE, attempt=attempt, counts=counts)
        assert (job is not None) == happens
        if row is not None and happens:
            row.status, row.failures = Status.IN_QUEUE, row.failures + counts
            assert job.failures == row.failures <= MAX_FAILURES * 100

    @rule(job_id=jobs)
    def a_client_cancels(self, job_id: str) -> None:
        row = self.rows.get(job_id)
        happens = row is not None and row.status in {Status.IN_QUEUE, Status.IN_PROGRESS}
        assert (self.settle(job_id, Event.CANCEL, error=WHY) is not None) == happens
        if happens:
            self.end(job_id, Event.CANCEL)

    @rule(job_id=jobs)
    def a_client_retries(self, job_id: str) -> None:
        row = self.rows.get(job_id)
        happens = row is not None and row.durable and row.status in {Status.FAILED, Status.TIMED_OUT}
        job = self.settle(job_id, Event.RETRY)
        assert (job is not None) == happens
        if row is not None and happens:
            self.sequence += 1
            row.status, row.failures, row.place = Status.IN_QUEUE, 0, (row.place[0], self.sequence)

    @rule()
    def a_client_purges(self) -> None:
        waiting = {job_id for job_id, row in self.rows.items() if row.status is Status.IN_QUEUE}
        purged = self.run(self.store.purge(HERE, ALICE, Millis(self.now), WHY))
        assert {job.id for job in purged} == waiting
        for job_id in waiting:
            self.end(job_id, Event.CANCEL)

    @rule(milliseconds=st.sampled_from([1, 999, RETENTION, 3 * RETENTION]))
    def time_passes(self, milliseconds: int) -> None:
        self.now += milliseconds
        over = {
            job_id
            for job_id, row in self.rows.items()
            if row.status in self.ended and row.finished + RETENTION <= self.now
        }
        assert self.run(self.store.forget(Millis(self.now), 1_000)) == len(over)
        for job_id in over:
            del self.rows[job_id]

    @invariant()
    def they_agree(self) -> None:
        if not hasattr(self, "rows"):
            return
        for job_id, row in self.rows.items():
            job = self.run(self.store.get(HERE, ALICE, JobId(job_id)))
            assert job is not None
            assert (job.status, job.attempt, job.failures) == (row.status, row.attempt, row.failures)
        counts = self.run(self.store.counts(HERE))
        standing = [row.status for row in self.rows.values()]
        assert counts.in_queue == standing.count(Status.IN_QUEUE)
        assert counts.in_progress == standing.count(Status.IN_PROGRESS)
        told = (counts.completed, counts.failed, counts.cancelled, counts.timed_out)
        assert told == tuple(self.ended[status] for status in ENDS.values())


TestMemoryStore = StoreModel.TestCase
TestMemoryStore.settings = settings(
    max_examples=60, stateful_step_count=60, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
