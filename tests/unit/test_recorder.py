"""The recorder: order of the output, also while the disk is full, back-pressure and limits."""

import asyncio
import sqlite3
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path

import pytest
from harness.data.jobs import submission
from harness.data.store_steps import LATER_RUN, found, sqlite_store, take
from harness.tools.waiting import until
from harness.worker.port import Port

from proxy.jobs.lifecycle import Event
from proxy.jobs.model import JobId, Millis
from proxy.jobs.policy import RunEnd
from proxy.service.events import JobEvents
from proxy.service.ports import SinkVerdict
from proxy.service.recorder import (
    ELEMENT_OVERHEAD_BYTES,
    FLUSH_BYTES,
    OUTPUT_MAX_BYTES,
    Recorder,
    Recording,
)
from proxy.store.errors import StoreFullError
from proxy.store.memory import MemoryStore

JOB = JobId("job")
ERRORS = [
    StoreFullError("the disk is full"),
    sqlite3.OperationalError("disk I/O error"),
    OSError("the disk does not answer"),
    RuntimeError("a bug"),
]


class UnreliableStore(MemoryStore):
    """A store whose `append` fails while `error` is set, and waits for `may_append`."""

    def __init__(self) -> None:
        super().__init__()
        self.error: Exception | None = None
        self.may_append = asyncio.Event()
        self.may_append.set()
        self.appends = 0

    async def append(
        self, job_id: JobId, run: int, outputs: Sequence[bytes], start: int | None = None
    ) -> int | None:
        self.appends += 1
        await self.may_append.wait()
        if self.error is not None:
            raise self.error
        return await super().append(job_id, run, outputs, start)


def no_end(_: Recording, end: RunEnd) -> asyncio.Task[None]:
    """Fail: the tests of this file end no run."""
    raise AssertionError(end)


@pytest.fixture
def port() -> Port:
    return Port()


@pytest.fixture
async def store() -> UnreliableStore:
    """Return a store with a running job."""
    store = UnreliableStore()
    await store.submit(submission(JOB), Millis(0))
    await take(store)
    return store


@pytest.fixture
def events() -> JobEvents:
    return JobEvents()


@pytest.fixture
def recorder(store: UnreliableStore, events: JobEvents) -> Recorder:
    return Recorder(store, events)


@pytest.fixture
async def recording(recorder: Recorder, store: UnreliableStore, port: Port) -> Recording:
    """Return the recording of the running job."""
    recording = recorder.open(await found(store, JOB), no_end)
    recording.begin(1, port)
    return recording


def put(recording: Recording, value: bytes, metrics: bytes = b"", *, whole: bool = False) -> bool:
    """Give a value to the recording; return False if it is too large."""
    taken = recording.output(1, value, metrics, whole=whole)
    assert taken in (SinkVerdict.ACCEPTED, SinkVerdict.TOO_LARGE)
    return taken is SinkVerdict.ACCEPTED


async def written(store: UnreliableStore) -> list[bytes]:
    return list((await store.read(JOB, 0, 1_000))[0])


def elements(*values: int) -> list[bytes]:
    return [b'{"output":%d}' % value for value in values]


# Writing


async def test_output_is_written_as_elements_with_their_metrics(
    recorder: Recorder, recording: Recording, store: UnreliableStore
) -> None:
    put(recording, b'"a"')
    put(recording, b"[1]", b'{"tokens":3}')
    await recorder.flush_all()
    assert await written(store) == [
        b'{"output":"a"}',
        b'{"output":[1],"metrics":{"tokens":3}}',
    ]


async def test_a_whole_output_is_not_an_element(
    recorder: Recorder, recording: Recording, store: UnreliableStore
) -> None:
    put(recording, b"{}", whole=True)
    await recorder.flush(recording)
    assert recording.whole == b"{}"
    assert await written(store) == []


async def test_readers_are_notified_when_output_is_written(
    recorder: Recorder, recording: Recording, events: JobEvents
) -> None:
    with events.subscribe(JOB) as subscription:
        put(recording, b"1")
        assert not await subscription.wait(0.0)
        await recorder.flush(recording)
        assert await subscription.wait(0.0)
        await recorder.flush(recording)
        assert not await subscription.wait(0.0), "there was nothing to write"


async def test_output_is_written_in_the_background(
    recorder: Recorder, recording: Recording, store: UnreliableStore
) -> None:
    serving = asyncio.create_task(recorder.serve())
    put(recording, b"1")
    await until(lambda: store.appends == 1, what="one element is written")
    store.may_append.clear()
    put(recording, b"2")
    await until(lambda: store.appends == 2, what="the next write has begun")
    for _ in range(FLUSH_BYTES):
        put(recording, b"3")
    store.may_append.set()
    await until(lambda: store.appends == 3, what="the rest is written")
    serving.cancel()
    await asyncio.gather(serving, return_exceptions=True)
    assert (await written(store))[:3] == elements(1, 2, 3)
    assert recorder._backlog == 0


# Failing writes


@pytest.mark.parametrize("error", ERRORS, ids=repr)
async def test_no_output_is_lost_when_a_write_fails(
    recorder: Recorder, recording: Recording, store: UnreliableStore, error: Exception
) -> None:
    put(recording, b"1")
    put(recording, b"2")
    store.error = error
    for _ in range(2):
        with pytest.raises(type(error)):
            await recorder.flush_all()
    put(recording, b"3")
    store.error = None
    await recorder.flush(recording)
    assert await written(store) == elements(1, 2, 3)


@pytest.mark.parametrize("error", ERRORS, ids=repr)
async def test_output_that_arrives_during_a_failing_write_keeps_its_order(
    recorder: Recorder, recording: Recording, store: UnreliableStore, error: Exception
) -> None:
    store.error = error
    store.may_append.clear()
    put(recording, b"1")
    writes = [asyncio.create_task(recorder.flush(recording)) for _ in range(3)]
    await until(lambda: store.appends == 1, what="the first write has begun")
    put(recording, b"2")
    store.may_append.set()
    assert await asyncio.gather(*writes, return_exceptions=True) == [error] * 3
    put(recording, b"3")
    store.error = None
    await recorder.flush(recording)
    assert await written(store) == elements(1, 2, 3)


async def test_a_failed_write_is_repeated_in_the_background(
    recorder: Recorder, recording: Recording, store: UnreliableStore
) -> None:
    """`keep` starts the loop again after an error."""
    store.error = OSError("the disk does not answer")
    put(recording, b"1")
    with pytest.raises(OSError, match="the disk does not answer"):
        await recorder.serve()
    store.error = None
    serving = asyncio.create_task(recorder.serve())
    await until(lambda: store.appends == 2, what="the element is written")
    serving.cancel()
    await asyncio.gather(serving, return_exceptions=True)
    assert await written(store) == elements(1)


async def test_a_failing_write_of_one_job_does_not_affect_another(
    recorder: Recorder, recording: Recording, store: UnreliableStore
) -> None:
    await store.submit(submission("other"), Millis(0))
    [job] = await take(store)
    other = recorder.open(job, no_end)
    put(recording, b"1")
    store.error = OSError("the disk does not answer")
    with pytest.raises(OSError, match="the disk does not answer"):
        await recorder.flush(recording)
    store.error = None
    put(other, b"2")
    await recorder.flush(other)
    assert (await store.read(other.job_id, 0, 9))[0] == elements(2)
    await recorder.flush(recording)
    assert await written(store) == elements(1)
    assert recorder._backlog == 0


async def test_the_output_of_a_run_that_was_dropped_during_a_failing_write_is_discarded(
    recorder: Recorder, recording: Recording, store: UnreliableStore
) -> None:
    store.error = OSError("the disk does not answer")
    store.may_append.clear()
    put(recording, b"1")
    writing = asyncio.create_task(recorder.flush(recording))
    await until(lambda: store.appends == 1, what="the write has begun")
    recording.drop(1)
    store.may_append.set()
    await asyncio.gather(writing, return_exceptions=True)
    store.error = None
    await recorder.flush_all()
    assert await written(store) == []
    assert (len(recorder), recorder._backlog) == (0, 0)


async def test_a_write_whose_caller_is_cancelled_is_not_repeated(tmp_path: Path) -> None:
    """SQLite carries out a write that was queued, also if its caller is cancelled."""
    path = tmp_path / "jobs.db"
    store = sqlite_store(path)
    async with store.open():
        await store.submit(submission(JOB), Millis(0))
        [job] = await take(store)
        recorder = Recorder(store, JobEvents())
        recording = recorder.open(job, no_end)
        put(recording, b"1")
        with closing(sqlite3.connect(path, isolation_level=None)) as other:
            other.execute("BEGIN IMMEDIATE")
            writing = asyncio.create_task(recorder.flush(recording))
            # Until the write is queued.
            await asyncio.sleep(0)
            writing.cancel()
            await asyncio.gather(writing, return_exceptions=True)
            other.execute("ROLLBACK")
        put(recording, b"2")
        await recorder.flush(recording)
        assert (await store.read(JOB, 0, 9))[0] == elements(1, 2)


async def test_the_output_of_a_job_that_has_ended_is_discarded(
    recorder: Recorder, recording: Recording, store: UnreliableStore
) -> None:
    put(recording, b"1")
    await store.settle(JOB, Event.CANCEL, now=Millis(0))
    await recorder.flush_all()
    assert await written(store) == []
    assert recorder._backlog == 0


# Recordings


async def test_a_later_run_has_a_recording_of_its_own(
    recorder: Recorder, recording: Recording, store: UnreliableStore
) -> None:
    put(recording, b"1")
    recorder.note(JOB, 1, b'"half"')
    await store.settle(JOB, Event.RELEASE, now=Millis(0))
    [job] = await take(store, run=LATER_RUN)
    later = recorder.open(job, no_end)
    assert recorder.get(JOB) is later
    assert (len(recorder), recorder._backlog, later.progress) == (1, 0, None)
    recorder.drop(recording)
    assert recorder.get(JOB) is later
    later.output(2, b"2", b"", whole=False)
    await recorder.flush_all()
    assert await written(store) == elements(2)


async def test_a_recording_from_before_an_adoption_writes_nothing_more(
    recorder: Recorder, recording: Recording, store: UnreliableStore
) -> None:
    put(recording, b"1")
    await recorder.flush(recording)
    put(recording, b"2")
    adopted = await store.adopt(JOB, 1, LATER_RUN, Millis(0))
    assert adopted is not None
    await recorder.flush(recording)
    later = recorder.open(adopted.job, no_end, adopted.cursor)
    put(later, b"3")
    await recorder.flush_all()
    assert await written(store) == elements(1, 3)


async def test_progress_belongs_to_the_current_attempt(
    recorder: Recorder, recording: Recording
) -> None:
    recorder.note(JOB, 2, b'"late"')
    recorder.note(JobId("unknown"), 1, b'"unknown"')
    assert recording.progress is None
    recorder.note(JOB, 1, b'"half"')
    assert recording.progress == b'"half"'


# Back-pressure and limits


async def test_a_worker_that_is_faster_than_the_disk_is_paused_and_resumed(
    recorder: Recorder, recording: Recording, port: Port
) -> None:
    for _ in range(20):
        put(recording, b'"' + b"x" * 10_000 + b'"')
    assert port.messages == [("pause", JOB, 1)]
    await recorder.flush_all()
    assert port.messages == [("pause", JOB, 1), ("resume", JOB, 1)]


async def test_a_worker_stays_paused_while_the_disk_is_full(
    recorder: Recorder, recording: Recording, store: UnreliableStore, port: Port
) -> None:
    put(recording, b'"' + b"x" * 200_000 + b'"')
    store.error = StoreFullError("the disk is full")
    with pytest.raises(StoreFullError):
        await recorder.flush_all()
    assert port.messages == [("pause", JOB, 1)]
    later = Port()
    assert recording.reattach(1, later) is SinkVerdict.ACCEPTED
    put(recording, b"1")
    store.error = None
    await recorder.flush_all()
    assert port.messages == [("pause", JOB, 1)]
    assert later.messages == [("pause", JOB, 1), ("resume", JOB, 1)]


@pytest.mark.parametrize("whole", [True, False])
def test_output_above_the_limit_is_rejected(recording: Recording, whole: bool) -> None:
    most = OUTPUT_MAX_BYTES - 2 * ELEMENT_OVERHEAD_BYTES
    assert put(recording, b"x" * (most - 10), b"y" * 10)
    assert not put(recording, b"x", whole=whole)
    assert recording.whole is None


def test_small_elements_count_towards_the_limit(recording: Recording) -> None:
    assert put(recording, b"x" * (OUTPUT_MAX_BYTES - 11 * ELEMENT_OVERHEAD_BYTES))
    accepted = 0
    while put(recording, b""):
        accepted += 1
    assert accepted == 10
