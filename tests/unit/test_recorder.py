"""The recorder, when the disk is full for a while: nothing is lost, nothing changes its place."""

from collections.abc import Sequence

import pytest
from harness.data.jobs import HERE, submission

from proxy.jobs.model import JobId, Millis, WorkerId
from proxy.service.events import JobEvents
from proxy.service.recorder import (
    ELEMENT_OVERHEAD_BYTES,
    OUTPUT_MAX_BYTES,
    InvalidOutputError,
    Recorder,
)
from proxy.store.base import StoreFullError
from proxy.store.memory import MemoryStore

JOB = JobId("job")


class Port:
    """A worker that is told to pause and to go on."""

    def __init__(self) -> None:
        self.said: list[str] = []

    def pause(self, _: JobId, __: int) -> None:
        self.said.append("pause")

    def resume(self, _: JobId, __: int) -> None:
        self.said.append("resume")


class FullStore(MemoryStore):
    """A store whose disk is full as long as it is told so."""

    is_full = False

    async def append(self, job_id: JobId, attempt: int, outputs: Sequence[bytes]) -> int | None:
        if self.is_full:
            raise StoreFullError
        return await super().append(job_id, attempt, outputs)


@pytest.fixture
def port() -> Port:
    return Port()


@pytest.fixture
def store() -> FullStore:
    return FullStore()


@pytest.fixture
async def recorder(store: FullStore, port: Port) -> Recorder:
    """One that records a running job."""
    await store.submit(submission(JOB, durable=True), Millis(0))
    await store.take(HERE, WorkerId("w"), limit=1, light_limit=0, now=Millis(0))
    recorder = Recorder(store, JobEvents())
    recorder.begin(JOB, 1, port)  # type: ignore[arg-type]
    return recorder


async def put(
    recorder: Recorder, data: bytes, *, more: bool = False, whole: bool = False, attempt: int = 1
) -> bool:
    return await recorder.put(JOB, attempt, data, b"", whole=whole, more=more)


async def test_what_could_not_be_written_is_written_later_in_its_place(
    recorder: Recorder, store: FullStore
) -> None:
    await put(recorder, b"1")
    store.is_full = True
    with pytest.raises(StoreFullError):
        await recorder.flush_all()
    await put(recorder, b"2")
    store.is_full = False
    assert await recorder.close(JOB, 1) is None
    assert (await store.read(JOB, 0, 9))[0] == [b'{"output":1}', b'{"output":2}']


async def test_parts_make_one_element(recorder: Recorder, store: FullStore) -> None:
    await put(recorder, b'"a', more=True)
    await put(recorder, b'b"')
    await recorder.flush_all()
    assert (await store.read(JOB, 0, 9))[0] == [b'{"output":"ab"}']


async def test_a_whole_output_is_no_element(recorder: Recorder, store: FullStore) -> None:
    await put(recorder, b"{}", whole=True)
    assert await recorder.close(JOB, 1) == b"{}"
    assert (await store.read(JOB, 0, 9))[0] == []


async def test_another_attempt_is_not_heard(recorder: Recorder, store: FullStore) -> None:
    await put(recorder, b"1", attempt=2)
    await recorder.flush_all()
    assert (await store.read(JOB, 0, 9))[0] == []


async def test_a_worker_that_is_ahead_of_the_disk_is_paused_and_goes_on(
    recorder: Recorder, port: Port
) -> None:
    for _ in range(20):
        await put(recorder, b'"' + b"x" * 10_000 + b'"')
    assert port.said == ["pause"]
    await recorder.flush_all()
    assert port.said == ["pause", "resume"]


async def test_more_than_may_be_is_told(recorder: Recorder) -> None:
    assert await put(recorder, b"x" * (OUTPUT_MAX_BYTES - 2 * ELEMENT_OVERHEAD_BYTES), more=True)
    assert not await put(recorder, b"x", more=True)


async def test_pieces_without_bytes_are_not_free(recorder: Recorder) -> None:
    taken = 0
    while await put(recorder, b"", more=True):
        taken += 1
    assert taken <= OUTPUT_MAX_BYTES // ELEMENT_OVERHEAD_BYTES


@pytest.mark.parametrize(
    "value", [b"", b"{", b"1 2", b'1,"status":"x"', b'"\xff"', b"NaN", b"[" * 100_000]
)
@pytest.mark.parametrize("whole", [True, False])
async def test_what_is_no_json_is_not_taken(recorder: Recorder, value: bytes, whole: bool) -> None:
    await put(recorder, value[:1], whole=whole, more=True)
    with pytest.raises(InvalidOutputError):
        await put(recorder, value[1:], whole=whole)
    with pytest.raises(InvalidOutputError):
        await recorder.put(JOB, 1, b"1", value or b"?", whole=whole, more=False)
    assert await recorder.close(JOB, 1) is None
