"""The recorder: order of the output, also while the disk is full, back-pressure and limits."""

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
    """Records the flow control messages to a worker."""

    def __init__(self) -> None:
        self.messages: list[str] = []

    def pause(self, _: JobId, __: int) -> None:
        self.messages.append("pause")

    def resume(self, _: JobId, __: int) -> None:
        self.messages.append("resume")


class FullStore(MemoryStore):
    """A store whose disk is full while `is_full` is set."""

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
    """Return a recorder that records a running job."""
    await store.submit(submission(JOB, durable=True), Millis(0))
    await store.take(HERE, WorkerId("w"), limit=1, light_limit=0, now=Millis(0))
    recorder = Recorder(store, JobEvents())
    recorder.begin(JOB, 1, port)  # type: ignore[arg-type]
    return recorder


async def put(
    recorder: Recorder, data: bytes, *, more: bool = False, whole: bool = False, attempt: int = 1
) -> bool:
    return await recorder.put(JOB, attempt, data, b"", whole=whole, more=more)


async def test_output_is_written_in_order_after_the_disk_was_full(
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


async def test_parts_are_joined_to_one_element(recorder: Recorder, store: FullStore) -> None:
    await put(recorder, b'"a', more=True)
    await put(recorder, b'b"')
    await recorder.flush_all()
    assert (await store.read(JOB, 0, 9))[0] == [b'{"output":"ab"}']


async def test_a_whole_output_is_not_an_element(recorder: Recorder, store: FullStore) -> None:
    await put(recorder, b"{}", whole=True)
    assert await recorder.close(JOB, 1) == b"{}"
    assert (await store.read(JOB, 0, 9))[0] == []


async def test_output_of_another_attempt_is_ignored(recorder: Recorder, store: FullStore) -> None:
    await put(recorder, b"1", attempt=2)
    await recorder.flush_all()
    assert (await store.read(JOB, 0, 9))[0] == []


async def test_a_worker_that_is_faster_than_the_disk_is_paused_and_resumed(
    recorder: Recorder, port: Port
) -> None:
    for _ in range(20):
        await put(recorder, b'"' + b"x" * 10_000 + b'"')
    assert port.messages == ["pause"]
    await recorder.flush_all()
    assert port.messages == ["pause", "resume"]


async def test_output_above_the_limit_is_rejected(recorder: Recorder) -> None:
    assert await put(recorder, b"x" * (OUTPUT_MAX_BYTES - 2 * ELEMENT_OVERHEAD_BYTES), more=True)
    assert not await put(recorder, b"x", more=True)


async def test_empty_pieces_count_towards_the_limit(recorder: Recorder) -> None:
    accepted = 0
    while await put(recorder, b"", more=True):
        accepted += 1
    assert accepted <= OUTPUT_MAX_BYTES // ELEMENT_OVERHEAD_BYTES


@pytest.mark.parametrize(
    "value", [b"", b"{", b"1 2", b'1,"status":"x"', b'"\xff"', b"NaN", b"[" * 100_000]
)
@pytest.mark.parametrize("whole", [True, False])
async def test_invalid_json_is_rejected(recorder: Recorder, value: bytes, whole: bool) -> None:
    await put(recorder, value[:1], whole=whole, more=True)
    with pytest.raises(InvalidOutputError):
        await put(recorder, value[1:], whole=whole)
    with pytest.raises(InvalidOutputError):
        await recorder.put(JOB, 1, b"1", value or b"?", whole=whole, more=False)
    assert await recorder.close(JOB, 1) is None
