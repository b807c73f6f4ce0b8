"""The correction of a job's output log at the end of its run."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from harness.data.clock import FakeClock
from harness.data.jobs import ALICE, HERE, submission
from harness.data.read_limits import ALL
from harness.data.store_steps import RUN
from harness.worker.port import Port

from proxy.app import Parts, compose
from proxy.jobs.lifecycle import Event, Status
from proxy.jobs.model import Cursor, Input, Job, JobError, JobId, Millis, WorkerId
from proxy.jobs.policy import Correction, Ending, RunEnd
from proxy.service.endpoints import Endpoint
from proxy.service.worker import Worker
from proxy.settings import MEMORY, Settings
from proxy.store.errors import StoreBusyError
from proxy.store.memory import MemoryStore
from proxy.system import System

A = JobId("a")
WORKER = WorkerId("w")
WHY = JobError("because", "Because.")
RIGHT = [b'{"output":1}', b'{"output":2}', b'{"output":3}']
END = RunEnd(Ending.COMPLETED, WHY, b"[1,2,3]", Correction(1, RIGHT[1:]))


class ScriptedStore(MemoryStore):
    """A store that fails with `errors`, one for each `settle`, and whose log is corrected between
    two calls of a reader if `corrects` is set.
    """

    def __init__(self) -> None:
        super().__init__()
        self.errors: list[Exception] = []
        self.corrects = False
        self.rewrites = 0

    async def settle(self, job_id: JobId, event: Event, **more: Any) -> Job | None:
        if self.errors:
            await self.deliver(A, 1)
            raise self.errors.pop(0)
        return await super().settle(job_id, event, **more)

    async def rewrite(self, job_id: JobId, run: int, start: int, outputs: Sequence[bytes]) -> bool:
        self.rewrites += 1
        return await super().rewrite(job_id, run, start, outputs)

    async def deliver(self, job_id: JobId, attempt: int) -> bool:
        if self.corrects:
            self.corrects = False
            assert await self.rewrite(job_id, RUN, 1, RIGHT[1:])
        return await super().deliver(job_id, attempt)


class Scene:
    """A run whose log has elements 1 and 3."""

    def __init__(self, parts: Parts, store: ScriptedStore) -> None:
        self.parts = parts
        self.store = store
        [self.endpoint] = parts.endpoints
        self.worker = Worker(WORKER, HERE, Port(), seen=0.0, slots=1)
        parts.fleet.add(self.worker)

    async def begin(self) -> None:
        await self.store.submit(submission(A, work=Input(b"{}")), Millis(0))
        [job] = await self.parts.runs.take(HERE, WORKER, 1, light=False, run=RUN)
        recording = self.parts.runs.record(job)
        self.worker.hold(job, recording, since=0.0)
        recording.begin(1, Port())
        for value in (b"1", b"3"):
            recording.output(1, value, b"", whole=False)

    async def end(self) -> Job:
        writing = self.parts.fleet.end_run(self.worker, A, 1, END)
        assert writing is not None
        await writing
        job = await self.store.find(A)
        assert job is not None
        return job

    async def log(self) -> list[bytes]:
        return list((await self.store.read(A, 0, 99))[0])


@pytest.fixture
async def scene(clock: FakeClock, tmp_path: Path) -> Scene:
    store = ScriptedStore()
    parts = compose(Settings(store=MEMORY, data_dir=tmp_path), System(clock=clock), store=store)
    scene = Scene(parts, store)
    await scene.begin()
    return scene


async def test_a_log_that_no_reader_has_seen_is_corrected(scene: Scene) -> None:
    job = await scene.end()
    assert (job.status, job.error, job.output) == (Status.COMPLETED, None, b"[1,2,3]")
    assert await scene.log() == RIGHT


async def test_a_run_whose_log_cannot_be_corrected_fails_with_its_result(scene: Scene) -> None:
    await scene.store.deliver(A, 1)
    job = await scene.end()
    assert (job.status, job.error, job.output) == (Status.FAILED, WHY, b"[1,2,3]")
    assert await scene.log() == [RIGHT[0], RIGHT[2]]


async def test_a_corrected_log_is_right_also_if_the_end_is_written_later(scene: Scene) -> None:
    scene.store.errors = [StoreBusyError("locked")] * 2
    job = await scene.end()
    assert (job.status, job.output) == (Status.COMPLETED, b"[1,2,3]")
    assert await scene.log() == RIGHT
    assert scene.store.rewrites == 1


async def read(scene: Scene, endpoint: Endpoint, way: str) -> Sequence[bytes]:
    if way == "consume":
        found = await scene.parts.durable.consume(endpoint, ALICE, A, 0.0, ALL)
        assert found is not None
        return found[1]
    page = await scene.parts.view.read(endpoint, ALICE, A, Cursor(0, 0), 0.0, ALL)
    assert page is not None
    return page.elements


@pytest.mark.parametrize("way", ["read", "consume"])
async def test_a_reader_does_not_receive_a_log_that_is_corrected_while_it_reads(
    scene: Scene, way: str
) -> None:
    await scene.parts.recorder.flush_all()
    scene.store.corrects = True
    assert list(await read(scene, scene.endpoint, way)) == RIGHT
    assert not await scene.store.rewrite(A, RUN, 0, [])
