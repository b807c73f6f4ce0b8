"""The dispatcher: one order of both queues, and a slow store that holds back no OpenAI call."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from harness.data.jobs import ALICE, HERE, REQUEST, submission
from harness.tools.waiting import until

from proxy.app import Parts, compose
from proxy.jobs.job_request import JobRequest
from proxy.jobs.lifecycle import Status
from proxy.jobs.model import EndpointId, Job, JobId, WorkerId
from proxy.jobs.policy import Ending, RunEnd
from proxy.service.ports import OfferedJob
from proxy.service.worker import Worker
from proxy.settings import Settings
from proxy.store.memory import MemoryStore
from proxy.system import SystemClock


class Port:
    """A worker's connection that records the offered jobs."""

    backlog = 0

    def __init__(self) -> None:
        self.offered: list[str] = []
        self.stopped: list[str] = []

    def offer(self, job: OfferedJob) -> None:
        self.offered.append(job.id)

    def stop(self, job_id: JobId, attempt: int) -> None:  # noqa: ARG002 - one run of each job
        self.stopped.append(job_id)

    def pause(self, job_id: JobId, attempt: int) -> None: ...
    def resume(self, job_id: JobId, attempt: int, acknowledged: int, confirmed: int) -> None: ...
    def acknowledge(self, job_id: JobId, attempt: int, confirmed: int) -> None: ...
    def close(self, reason: str) -> None: ...


class ControlledStore(MemoryStore):
    """A store whose `take` waits for `may_take`, and fails while `is_broken` is set."""

    def __init__(self) -> None:
        super().__init__()
        self.may_take = asyncio.Event()
        self.may_take.set()
        self.is_broken = False
        self.takes = 0

    async def take(self, endpoint: EndpointId, worker: WorkerId, **more: Any) -> Sequence[Job]:
        self.takes += 1
        await self.may_take.wait()
        if self.is_broken:
            raise OSError("the disk does not answer")
        return await super().take(endpoint, worker, **more)


class Scene:
    """A dispatcher that runs, and its workers."""

    def __init__(self, parts: Parts, store: ControlledStore) -> None:
        self.parts = parts
        self.store = store
        self.port = Port()
        self.worker = self.join("w", 0, self.port)

    def join(self, name: str, slots: int, port: Port) -> Worker:
        """Add a worker to the fleet."""
        now = asyncio.get_running_loop().time()
        worker = Worker(WorkerId(name), HERE, port, seen=now, slots=slots)
        self.parts.fleet.add(worker)
        self.parts.fleet.wake(HERE)
        return worker

    def give_slots(self, slots: int) -> None:
        """Change the number of slots of the first worker."""
        self.worker.slots = slots
        self.parts.fleet.wake(HERE)

    async def submit(self, job_id: str, *, low_priority: bool = False) -> str:
        """Put a durable job into the queue."""
        now = SystemClock().now()
        await self.store.submit(submission(job_id, low_priority=low_priority), now)
        self.parts.fleet.wake(HERE)
        return job_id

    def call(self) -> str:
        """Put an interactive job into the queue."""
        [endpoint] = self.parts.endpoints
        return self.parts.interactive.call(
            endpoint, ALICE, REQUEST, light=False, queue_timeout=None
        ).job.id

    def end(self, job_id: str) -> None:
        """Complete a run of the first worker."""
        hold = self.worker.holds[JobId(job_id)]
        end = RunEnd(Ending.COMPLETED)
        self.parts.fleet.end_run(self.worker, JobId(job_id), hold.attempt, end)

    async def offered(self, *job_ids: str) -> None:
        """Wait until exactly these jobs have been offered to the first worker, in this order."""
        await until(lambda: len(self.port.offered) >= len(job_ids), what="the jobs are offered")
        assert self.port.offered == list(job_ids)


@pytest_asyncio.fixture
async def scene(tmp_path: Path) -> AsyncIterator[Scene]:
    store = ControlledStore()
    parts = compose(Settings(store="memory:", data_dir=tmp_path), store=store)
    serving = asyncio.create_task(parts.dispatch.serve(HERE))
    yield Scene(parts, store)
    store.may_take.set()
    serving.cancel()
    await asyncio.gather(serving, return_exceptions=True)
    await parts.background.finish(1.0)


async def test_both_queues_are_handed_out_in_one_order(scene: Scene) -> None:
    low = await scene.submit("low", low_priority=True)
    jobs = [await scene.submit("1"), scene.call(), await scene.submit("3"), scene.call()]
    jobs += [scene.call(), await scene.submit("6"), low]
    scene.give_slots(1)
    for number, job_id in enumerate(jobs, 1):
        await scene.offered(*jobs[:number])
        scene.end(job_id)


async def test_all_credit_is_distributed_at_once(scene: Scene) -> None:
    first = await scene.submit("first")
    calls = [scene.call(), scene.call()]
    last = await scene.submit("last")
    scene.give_slots(3)
    await scene.offered(*calls, first)
    scene.end(calls[0])
    await scene.offered(*calls, first, last)


async def test_each_take_has_a_run_number_of_its_own(scene: Scene) -> None:
    jobs = [await scene.submit(name) for name in "abc"]
    scene.give_slots(1)
    for number, job_id in enumerate(jobs, 1):
        await scene.offered(*jobs[:number])
        scene.end(job_id)
    taken = [await scene.store.find(JobId(job_id)) for job_id in jobs]
    numbers = {job.run for job in taken if job is not None}
    assert len(numbers - {0}) == len(jobs)


async def test_durable_jobs_go_to_the_least_loaded_workers(scene: Scene) -> None:
    others = [Port(), Port()]
    for number, port in enumerate(others):
        scene.join(f"other-{number}", 4, port)
    scene.give_slots(4)
    for number in range(6):
        await scene.submit(f"{number}")
    ports = (scene.port, *others)
    await until(lambda: sum(len(port.offered) for port in ports) == 6, what="all are offered")
    assert [len(port.offered) for port in ports] == [2, 2, 2]


async def test_a_slow_store_does_not_hold_back_calls(scene: Scene) -> None:
    scene.store.may_take.clear()
    durable = await scene.submit("durable")
    scene.give_slots(3)
    await until(lambda: scene.worker.reserved == 1, what="the store is being asked")
    calls = [scene.call(), scene.call()]
    await scene.offered(*calls)
    assert scene.worker.credit == 0, "the slot of the durable job is reserved"
    scene.store.may_take.set()
    await scene.offered(*calls, durable)
    assert scene.worker.reserved == 0


async def test_a_reserved_slot_is_given_to_a_call_if_the_store_does_not_answer(
    scene: Scene,
) -> None:
    scene.store.may_take.clear()
    durable = await scene.submit("durable")
    scene.give_slots(1)
    await until(lambda: scene.worker.reserved == 1, what="the store is being asked")
    call = scene.call()
    await scene.offered(call)
    # The store hands the job out too late: it returns to the queue, and no failure is counted.
    scene.store.may_take.set()
    await until(lambda: scene.store.queued(HERE, light=False) == 1, what="the job is queued again")
    job = await scene.store.find(JobId(durable))
    assert job is not None
    assert (job.status, job.failures) == (Status.IN_QUEUE, 0)
    scene.end(call)
    await scene.offered(call, durable)


async def test_a_broken_store_does_not_hold_back_calls(scene: Scene) -> None:
    scene.store.is_broken = True
    durable = await scene.submit("durable")
    scene.give_slots(1)
    await until(lambda: scene.store.takes == 1, what="the store was asked")
    call = scene.call()
    await scene.offered(call)
    scene.store.is_broken = False
    scene.end(call)
    await scene.offered(call, durable)
    assert scene.store.takes < 5, "the store was not asked in a loop"


async def test_a_job_taken_for_a_worker_that_has_left_returns_to_the_queue(scene: Scene) -> None:
    scene.store.may_take.clear()
    durable = await scene.submit("durable")
    scene.give_slots(1)
    await until(lambda: scene.worker.reserved == 1, what="the store is being asked")
    scene.parts.fleet.remove(scene.worker, "it left")
    scene.store.may_take.set()
    await until(lambda: scene.store.queued(HERE, light=False) == 1, what="the job is queued again")
    port = Port()
    scene.join("other", 1, port)
    await until(lambda: port.offered == [durable], what="another worker has it")
    job = await scene.store.find(JobId(durable))
    assert job is not None
    assert job.failures == 0


@pytest.mark.parametrize("ending", [Ending.RELEASED, Ending.LOST])
async def test_a_job_that_comes_back_is_first_again(scene: Scene, ending: Ending) -> None:
    first, second = scene.call(), scene.call()
    durable = await scene.submit("durable")
    scene.give_slots(1)
    await scene.offered(first)
    scene.parts.fleet.end_run(scene.worker, JobId(first), 1, RunEnd(ending))
    await scene.offered(first, first)
    scene.end(first)
    await scene.offered(first, first, second)
    scene.end(second)
    await scene.offered(first, first, second, durable)
    scene.parts.fleet.end_run(scene.worker, JobId(durable), 1, RunEnd(ending))
    await scene.offered(first, first, second, durable, durable)


@pytest.mark.parametrize("slots", [32, 4_096])
async def test_a_job_that_is_cancelled_while_it_is_taken_is_stopped(
    tmp_path: Path, slots: int
) -> None:
    """Cancellations and takes are committed in any order, in shared transactions."""
    parts = compose(Settings(data_dir=tmp_path))
    [endpoint] = parts.endpoints
    async with parts.store.open():
        serving = asyncio.create_task(parts.dispatch.serve(HERE))
        ids = [
            (await parts.durable.submit(endpoint, ALICE, JobRequest(b"1"))).id for _ in range(200)
        ]
        port = Port()
        now = asyncio.get_running_loop().time()
        worker = Worker(WorkerId("w"), HERE, port, seen=now, slots=slots)
        parts.fleet.add(worker)
        parts.fleet.wake(HERE)
        ended = await asyncio.gather(
            *(parts.durable.cancel(endpoint, ALICE, job_id) for job_id in ids)
        )
        assert {job.status for job in ended if job is not None} == {Status.CANCELLED}
        serving.cancel()
        await asyncio.gather(serving, return_exceptions=True)
        await parts.background.finish(5.0)
        assert sorted(port.offered) == sorted(port.stopped)
