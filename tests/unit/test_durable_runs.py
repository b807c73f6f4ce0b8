"""The runs of durable jobs: their ends in the store, and the consequences for the workers."""

import asyncio
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from harness.data.clock import FakeClock
from harness.data.jobs import ALICE, HERE, submission
from harness.data.read_limits import ALL
from harness.data.store_steps import LATER_RUN, RUN
from harness.worker.port import Port

from proxy.app import Parts, compose
from proxy.jobs.lifecycle import Event, Status
from proxy.jobs.model import Cursor, Input, Job, JobError, JobId, Millis, WorkerId
from proxy.jobs.policy import MAX_LOST_RUNS, WORKER_LOST, Ending, RunEnd
from proxy.service.durable import NOT_RESUMED
from proxy.service.recorder import Recording
from proxy.service.worker import Worker
from proxy.settings import MEMORY, Settings
from proxy.store.errors import StoreFullError
from proxy.store.memory import MemoryStore
from proxy.system import System

A = JobId("a")
WORKER = WorkerId("w")
WHY = JobError("because", "Because.")
LOST = RunEnd(Ending.LOST, WHY)
RELEASED = RunEnd(Ending.RELEASED)
COMPLETED = RunEnd(Ending.COMPLETED)


class UnreliableStore(MemoryStore):
    """A store whose `settle` and `append` fail with the errors in `errors`, one for each call."""

    def __init__(self) -> None:
        super().__init__()
        self.errors: list[Exception] = []

    async def settle(self, job_id: JobId, event: Event, **more: Any) -> Job | None:
        self._fail()
        return await super().settle(job_id, event, **more)

    async def append(
        self, job_id: JobId, run: int, outputs: Sequence[bytes], start: int | None = None
    ) -> int | None:
        self._fail()
        return await super().append(job_id, run, outputs, start)

    def _fail(self) -> None:
        if self.errors:
            raise self.errors.pop(0)


class Scene:
    """A job that is submitted, taken and ended, and its worker."""

    def __init__(self, parts: Parts, store: UnreliableStore, clock: FakeClock) -> None:
        self.parts = parts
        self.store = store
        self.clock = clock
        self.port = Port()
        self.worker = Worker(WORKER, HERE, self.port, seen=0.0, slots=1)
        parts.fleet.add(self.worker)

    async def submit(self, **changed: Any) -> None:
        await self.store.submit(submission(A, work=Input(b"{}"), **changed), self.clock.now())

    async def take(self, run: int = RUN) -> Recording:
        """Begin a run on the worker."""
        [job] = await self.parts.runs.take(HERE, WORKER, 1, light=False, run=run)
        recording = self.parts.runs.record(job)
        self.worker.hold(job, recording, since=0.0)
        recording.begin(job.attempt, self.port)
        return recording

    async def end(self, end: RunEnd) -> Job:
        """End the current run, and wait until that is in the store."""
        attempt = (await self.job()).attempt
        writing = self.parts.fleet.end_run(self.worker, A, attempt, end)
        assert writing is not None
        await writing
        return await self.job()

    async def job(self) -> Job:
        job = await self.store.find(A)
        assert job is not None
        return job

    async def log(self) -> list[bytes]:
        return list((await self.store.read(A, 0, 99))[0])


@pytest.fixture
async def scene(clock: FakeClock, tmp_path: Path) -> Scene:
    store = UnreliableStore()
    parts = compose(Settings(store=MEMORY, data_dir=tmp_path), System(clock=clock), store=store)
    return Scene(parts, store, clock)


@pytest_asyncio.fixture
async def run(scene: Scene) -> Recording:
    """Return the recording of the first run, with one element of output."""
    await scene.submit()
    recording = await scene.take()
    recording.output(1, b"1", b"", whole=False)
    return recording


# Ends with a result


@pytest.mark.parametrize(
    ("ending", "status", "error"),
    [(Ending.COMPLETED, Status.COMPLETED, None), (Ending.FAILED, Status.FAILED, WHY)],
)
async def test_the_output_is_written_before_the_end(
    scene: Scene, run: Recording, ending: Ending, status: Status, error: JobError | None
) -> None:
    job = await scene.end(RunEnd(ending, error))
    assert (job.status, job.error, job.output) == (status, error, None)
    assert await scene.log() == [b'{"output":1}']
    assert len(scene.parts.recorder) == 0
    assert scene.worker.held == 0


async def test_a_whole_output_is_the_output_of_the_job(scene: Scene, run: Recording) -> None:
    run.output(1, b'"all"', b"", whole=True)
    assert (await scene.end(COMPLETED)).output == b'"all"'


async def test_an_output_in_the_end_of_a_run_precedes_a_recorded_one(
    scene: Scene, run: Recording
) -> None:
    run.output(1, b'"all"', b"", whole=True)
    assert (await scene.end(RunEnd(Ending.COMPLETED, output=b'"other"'))).output == b'"other"'


async def test_a_run_without_a_usable_answer_fails_and_is_not_repeated(
    scene: Scene, run: Recording
) -> None:
    job = await scene.end(RunEnd(Ending.REFUSED, WHY))
    assert (job.status, job.error, job.output) == (Status.FAILED, WHY, None)


# Ends without a result


@pytest.mark.parametrize("way", ["read", "consume"])
async def test_a_reader_of_a_job_between_two_runs_waits_for_the_next_one(
    scene: Scene, run: Recording, way: str
) -> None:
    await scene.parts.recorder.flush(run)
    await scene.end(RELEASED)
    [endpoint] = scene.parts.endpoints
    reading = asyncio.create_task(
        scene.parts.view.read(endpoint, ALICE, A, Cursor(0, 0), 20.0, ALL)
        if way == "read"
        else scene.parts.durable.consume(endpoint, ALICE, A, 20.0, ALL)
    )
    await asyncio.sleep(0)
    second = await scene.take()
    second.output(2, b"2", b"", whole=False)
    await scene.parts.recorder.flush(second)
    found = await reading
    assert found is not None
    assert (found[0].attempt, list(found[1])) == (2, [b'{"output":2}'])


@pytest.mark.parametrize(("end", "failures"), [(RELEASED, 0), (LOST, 1)])
async def test_a_job_whose_output_no_client_has_read_returns_to_the_queue(
    scene: Scene, run: Recording, end: RunEnd, failures: int
) -> None:
    await scene.parts.recorder.flush_all()
    run.output(1, b"2", b"", whole=False)
    job = await scene.end(end)
    assert (job.status, job.failures, job.worker) == (Status.IN_QUEUE, failures, None)
    assert len(scene.parts.recorder) == 0
    await scene.take()
    assert await scene.log() == []
    job = await scene.end(COMPLETED)
    assert (job.status, job.attempt) == (Status.COMPLETED, 2)


@pytest.mark.parametrize(("end", "error"), [(RELEASED, WORKER_LOST), (LOST, WHY)])
async def test_a_run_whose_output_a_client_has_read_is_not_repeated(
    scene: Scene, run: Recording, end: RunEnd, error: JobError
) -> None:
    await scene.parts.recorder.flush_all()
    await scene.store.consume(A, 1, 1)
    job = await scene.end(end)
    assert (job.status, job.error) == (Status.FAILED, error)
    assert await scene.log() == [b'{"output":1}']


async def test_a_job_fails_after_too_many_lost_runs(scene: Scene) -> None:
    await scene.submit()
    for attempt in range(1, MAX_LOST_RUNS + 1):
        await scene.take()
        job = await scene.end(LOST)
        assert (job.status is Status.FAILED) == (attempt == MAX_LOST_RUNS)
    assert job.error is not None
    assert job.error.code == "gave_up"


async def test_the_loss_of_a_worker_is_the_loss_of_its_runs(scene: Scene, run: Recording) -> None:
    scene.parts.fleet.remove(scene.worker, "it left")
    await scene.parts.background.finish(10.0)
    job = await scene.job()
    assert (job.status, job.failures) == (Status.IN_QUEUE, 1)


async def test_a_late_end_of_a_run_changes_nothing(scene: Scene, run: Recording) -> None:
    await scene.store.settle(A, Event.RELEASE, now=scene.clock.now(), run=RUN)
    later = await scene.take(LATER_RUN)
    before = await scene.job()
    for end in (COMPLETED, LOST):
        if (writing := run.end(1, end)) is not None:
            await writing
        assert await scene.job() == before
        assert scene.parts.recorder.get(A) is later


@pytest.mark.parametrize("end", [COMPLETED, RunEnd(Ending.FAILED, WHY), LOST, RELEASED])
async def test_the_end_of_a_run_that_was_adopted_under_another_number_changes_nothing(
    scene: Scene, run: Recording, end: RunEnd
) -> None:
    assert await scene.store.adopt(A, 1, LATER_RUN, scene.clock.now())
    before = await scene.job()
    assert await scene.end(end) == before
    assert (before.status, before.run) == (Status.IN_PROGRESS, LATER_RUN)
    assert await scene.log() == []


# Ends in another way


async def test_a_cancelled_job_keeps_its_output_and_stops_its_run(
    scene: Scene, run: Recording
) -> None:
    job = await scene.parts.runs.cancel(await scene.job())
    assert job is not None
    assert job.status is Status.CANCELLED
    assert await scene.log() == [b'{"output":1}']
    assert scene.port.messages == [("stop", A, 1)]
    assert len(scene.parts.recorder) == 0
    assert await scene.parts.runs.cancel(job) is None


async def test_an_overdue_job_stops_its_run(scene: Scene) -> None:
    await scene.submit(execution_timeout=Millis(1_000))
    await scene.take()
    scene.clock.pass_time(1)
    await scene.parts.runs.end_overdue()
    job = await scene.job()
    assert job.status is Status.TIMED_OUT
    assert job.error is not None
    assert job.error.code == "execution_timeout"
    assert scene.port.messages == [("stop", A, 1)]
    assert len(scene.parts.recorder) == 0


async def test_a_job_that_was_not_handed_out_returns_to_the_queue(scene: Scene) -> None:
    await scene.submit()
    [job] = await scene.parts.runs.take(HERE, WORKER, 1, light=False, run=RUN)
    scene.parts.runs.give_back(job)
    await scene.parts.background.finish(10.0)
    job = await scene.job()
    assert (job.status, job.failures) == (Status.IN_QUEUE, 0)


@pytest.mark.parametrize("is_adopted", [False, True])
@pytest.mark.parametrize(
    ("consumed", "status", "error"),
    [(0, Status.IN_QUEUE, None), (1, Status.FAILED, NOT_RESUMED)],
)
async def test_an_orphan_is_repeated_unless_a_client_has_read_output(
    scene: Scene,
    run: Recording,
    consumed: int,
    status: Status,
    error: JobError | None,
    *,
    is_adopted: bool,
) -> None:
    """Also if its adoption has taken effect although the store reported an error."""
    await scene.parts.recorder.flush_all()
    if consumed:
        await scene.store.consume(A, 1, consumed)
    orphan = await scene.job()
    if is_adopted:
        await scene.store.adopt(A, 1, LATER_RUN, scene.clock.now())
    scene.parts.runs.orphaned(orphan, (orphan.run, LATER_RUN))
    await scene.parts.background.finish(1.0)
    job = await scene.job()
    assert (job.status, job.error, job.failures) == (status, error, 0)


# Notifications


@pytest.mark.parametrize("end", [COMPLETED, RunEnd(Ending.FAILED, WHY), RELEASED, LOST])
async def test_the_end_of_a_run_notifies_its_readers(
    scene: Scene, run: Recording, end: RunEnd
) -> None:
    with scene.parts.events.subscribe(A) as subscription:
        await scene.end(end)
        assert await subscription.wait(0.0)


async def test_the_end_of_a_job_starts_its_webhook(scene: Scene) -> None:
    delivered = []
    scene.parts.runs.on_delivery = lambda: delivered.append(1)
    await scene.submit(webhook="https://example.com")
    await scene.take()
    await scene.end(RELEASED)
    assert delivered == []
    await scene.take()
    await scene.end(COMPLETED)
    assert delivered == [1]


# Failing writes


async def test_the_end_of_a_run_is_written_when_the_store_has_room_again(
    scene: Scene, run: Recording
) -> None:
    scene.store.errors = [StoreFullError("the disk is full")]
    job = await scene.end(COMPLETED)
    assert job.status is Status.COMPLETED
    assert await scene.log() == [b'{"output":1}']
    assert len(scene.parts.recorder) == 0


async def test_a_run_whose_end_cannot_be_written_leaves_nothing_behind(
    scene: Scene, run: Recording
) -> None:
    """Its job is timed out later."""
    scene.store.errors = [OSError("the disk does not answer")]
    await scene.end(COMPLETED)
    scene.clock.pass_time(24 * 3600)
    await scene.parts.runs.end_overdue()
    assert (await scene.job()).status is Status.TIMED_OUT
    assert len(scene.parts.recorder) == 0
