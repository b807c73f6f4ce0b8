"""The store of an earlier version: every job is there, ends, and is reported."""

import asyncio
import json
import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace

import aiohttp
import pytest
from aiohttp import web
from harness.proxy.process import Alone, alone
from harness.proxy.queue_api import QueueClient
from harness.tools.waiting import until
from harness.worker.process import environment, worker_process

from proxy.access.encryption import Seal
from proxy.jobs.lifecycle import Event, Status
from proxy.jobs.model import EndpointId, Input, Job, JobError, JobId, Millis, Owner
from proxy.jobs.served_model import Model
from proxy.store.sqlite.store import SqliteStore
from proxy.system import SystemDisk, ThreadRunner

DATA = Path(__file__).parents[1] / "data"
HERE, ALICE = EndpointId("default"), Owner("anonymous")
TOKEN = "worker-token-of-this-story"
# See `make_old_jobs.py`.
T0 = 1_780_000_000_000
WEBHOOK = "http://127.83.12.7:28017/hook?token=secret"
HOST, PORT = "127.83.12.7", 28017

STATUSES = {
    "completed-u1": Status.COMPLETED,
    "whole-u1": Status.COMPLETED,
    "failed-u1": Status.FAILED,
    "cancelled-u1": Status.CANCELLED,
    "expired-u1": Status.TIMED_OUT,
    "again-u1": Status.IN_PROGRESS,
    "running-u1": Status.IN_PROGRESS,
    "queued-u1": Status.IN_QUEUE,
    "low-u1": Status.IN_QUEUE,
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Return a data directory with a copy of the file, and the key of its sealed values."""
    shutil.copy(DATA / "jobs-a0f3c11.db", tmp_path / "jobs.db")
    shutil.copy(DATA / "jobs-a0f3c11.seal-key", tmp_path / "seal-key")
    for path in tmp_path.iterdir():
        path.chmod(0o600)
    return tmp_path


@pytest.fixture
async def store(folder: Path) -> AsyncIterator[SqliteStore]:
    made = SqliteStore(folder / "jobs.db", SystemDisk(), ThreadRunner)
    async with made.open():
        yield made


async def find(store: SqliteStore, job_id: str) -> Job:
    job = await store.find(JobId(job_id))
    assert job is not None
    return job


async def test_no_model_is_known_until_one_is_announced(store: SqliteStore) -> None:
    assert await store.served_models() == {}
    await store.set_served_models(HERE, [Model("small")])
    assert await store.served_models() == {HERE: [Model("small")]}


async def test_every_job_is_there_with_its_fields(store: SqliteStore) -> None:
    recent = await store.recent(HERE, ALICE, before=None, limit=100)
    assert {job.id: job.status for job in recent} == STATUSES
    assert [job.sequence for job in recent] == [9, 8, 7, 6, 5, 4, 3, 2, 1]
    assert [job.created_at for job in recent] == [T0 + 1_000 * number for number in range(9, 0, -1)]
    queued = await find(store, "queued-u1")
    assert isinstance(queued.submission.work, Input)
    assert json.loads(queued.submission.work.body)["prompt"] == "queued"
    assert (await find(store, "low-u1")).submission.low_priority
    again = await find(store, "again-u1")
    assert (again.attempt, again.failures, again.worker) == (2, 1, "w-old")
    failed = await find(store, "failed-u1")
    assert failed.error == JobError("engine_error", "It broke.")
    assert failed.finished_at == failed.created_at + 500
    assert (await find(store, "whole-u1")).output == b'{"big":12345678901234567890}'
    assert await store.read(JobId("completed-u1"), 0, 10) == (
        [b'{"output":"one"}', b'{"output":2.50}'],
        2,
    )
    assert {job.id for job in await store.running()} == {"again-u1", "running-u1"}
    counts = await store.counts(HERE)
    ended = (counts.completed, counts.failed, counts.cancelled, counts.timed_out)
    assert (counts.in_queue, counts.in_progress, ended) == (2, 2, (2, 1, 1, 1))


async def test_a_run_of_an_earlier_version_has_no_number_until_it_is_adopted(
    store: SqliteStore,
) -> None:
    again, running = JobId("again-u1"), JobId("running-u1")
    assert {job.run for job in await store.running()} == {0}
    now = Millis(T0 + 60_000)
    assert await store.settle(again, Event.RELEASE, now=now, run=1) is None
    assert await store.settle(again, Event.RELEASE, now=now, run=0)
    adopted = await store.adopt(running, 1, run=1, now=now)
    assert adopted is not None
    assert (adopted.job.attempt, adopted.job.run, adopted.cursor) == (1, 1, 1)
    assert await store.append(running, 0, [b"late"]) is None
    assert await store.settle(running, Event.RELEASE, now=now, run=0) is None
    assert await store.append(running, 1, [b'{"output":"two"}'], 1) == 2
    assert await store.settle(running, Event.COMPLETE, now=now, run=1)


async def test_sealed_values_can_be_opened(store: SqliteStore, folder: Path) -> None:
    seal = Seal((folder / "seal-key").read_text().strip(), bytes)
    queued = await find(store, "queued-u1")
    assert seal.open(queued.submission.s3_config or b"") == (
        b'{"accessId":"id","accessSecret":"secret"}'
    )
    deliveries = await store.deliveries((await find(store, "low-u1")).created_at, 10)
    assert [(one.job.id, one.tries) for one in deliveries] == [
        ("completed-u1", 0),
        ("failed-u1", 0),
    ]
    assert {seal.open_webhook(one.job.submission.webhook or "") for one in deliveries} == {WEBHOOK}


@dataclass
class Reports:
    """The webhooks that have arrived, by job."""

    bodies: dict[str, dict[str, object]] = field(default_factory=dict)

    async def handle(self, request: web.Request) -> web.Response:
        assert request.path_qs == "/hook?token=secret"
        body = await request.json()
        self.bodies[body["id"]] = body
        return web.Response()


@asynccontextmanager
async def receiver() -> AsyncIterator[Reports]:
    reports = Reports()
    app = web.Application()
    app.router.add_post("/hook", reports.handle)
    runner = web.AppRunner(app)
    await runner.setup()
    try:
        try:
            await web.TCPSite(runner, HOST, PORT).start()
        except OSError as error:
            pytest.skip(f"{HOST} is not an address of this machine: {error}")
        yield reports
    finally:
        await runner.cleanup()


@asynccontextmanager
async def serving(folder: Path) -> AsyncIterator[tuple[Alone, QueueClient]]:
    settings = {"worker_token": TOKEN, "lease": 1.0, "webhook_allow": HOST}
    async with (
        alone(folder, **settings) as proxy,
        aiohttp.ClientSession(proxy.url) as http,
    ):
        yield proxy, QueueClient(SimpleNamespace(http=http))  # type: ignore[arg-type]


async def test_every_job_ends_and_every_webhook_is_delivered(folder: Path) -> None:
    async with receiver() as reports, serving(folder) as (proxy, queue):
        variables = environment(connect=proxy.url, token=TOKEN, id="w-new")
        async with worker_process(variables=variables, name="w-new"):
            unfinished = [name for name, status in STATUSES.items() if not is_final(status)]
            ended = await asyncio.gather(*map(queue.end, unfinished))
            assert {answer["status"] for answer in ended} == {"COMPLETED"}
            # The runs of the earlier version begin again, without the output that they had.
            for name, answer in zip(unfinished, ended, strict=True):
                prompt = name.removesuffix("-u1")
                text = "".join(element["text"][0] for element in answer["output"])
                assert text == "".join(f"{prompt} {number} " for number in range(3))
            await until(lambda: len(reports.bodies) == 4, what="all webhooks have arrived")
        expected = {
            "completed-u1": "COMPLETED",
            "failed-u1": "FAILED",
            "running-u1": "COMPLETED",
            "queued-u1": "COMPLETED",
        }
        assert {name: body["status"] for name, body in reports.bodies.items()} == expected
        whole = await queue.status("whole-u1")
        assert whole["output"] == {"big": 12345678901234567890}
        assert (await queue.status("completed-u1"))["output"] == ["one", 2.5]
        assert (await queue.status("expired-u1"))["status"] == "TIMED_OUT"


def is_final(status: Status) -> bool:
    return status not in (Status.IN_QUEUE, Status.IN_PROGRESS)
