"""The reader of frames from a worker: each goes to the sink of its run; invalid ones cut it."""

import asyncio
from typing import Any

import pytest
from harness.data.jobs import HERE, submission
from harness.worker.port import Port
from harness.worker.sink import RecordingSink

from proxy.channel.native.connection import (
    ENGINE_ERROR,
    MESSAGE_CHARACTERS,
    METRICS_MAX_BYTES,
    NO_HEAD,
    NO_JSON,
    Reader,
)
from proxy.jobs.lifecycle import Status
from proxy.jobs.model import Head, Job, JobError, JobId, Millis, WorkerId
from proxy.jobs.policy import WORKER_LOST, Ending, RunEnd
from proxy.service.events import LocalSignal
from proxy.service.fleet import OVERFLOW, Fleet
from proxy.service.json_text import INLINE_MAX_BYTES
from proxy.service.ports import SinkVerdict
from proxy.service.recorder import ELEMENT_OVERHEAD_BYTES, OUTPUT_MAX_BYTES
from proxy.service.worker import Worker
from proxy.wire import frames

JOB = JobId("a")
INVALID_JSON = [b"", b"{", b"1 2", b'1,"status":"x"', b'"\xff"', b"NaN", b"[" * 100_000]


class Scene:
    """A worker with one run, and the reader of its frames."""

    def __init__(self, sink: RecordingSink | None = None) -> None:
        self.port = Port()
        self.sink = sink or RecordingSink()
        self.worker = Worker(WorkerId("w"), HERE, self.port, seen=0.0, slots=1)
        fleet = Fleet(LocalSignal())
        fleet.add(self.worker)
        self.worker.hold(
            Job(submission(JOB), 1, Status.IN_PROGRESS, Millis(0), attempt=1), self.sink, since=0.0
        )
        self.hold = self.worker.holds[JOB]
        self.reader = Reader(self.worker, fleet, self.port)

    async def output(
        self, data: bytes, metrics: bytes = b"", *, whole: bool = False, more: bool = False
    ) -> None:
        await self.reader.handle_output(frames.Output(JOB, 1, data, metrics, whole, more))

    async def handle(self, frame: frames.Head | frames.Chunk | frames.Output | frames.End) -> None:
        if isinstance(frame, frames.Output):
            await self.reader.handle_output(frame)
        else:
            self.reader.handle(frame)

    def assert_cut(self, error: JobError) -> None:
        """Check that the run has ended with this error as its only call, and was stopped once."""
        assert self.sink.calls == [("end", 1, RunEnd(Ending.REFUSED, error))]
        self.assert_stopped()

    def assert_stopped(self) -> None:
        assert self.port.messages == [("stop", JOB, 1)]
        assert JOB in self.worker.holds, "its slot is occupied until the worker has ended it"


@pytest.fixture
async def scene() -> Scene:
    return Scene()


# Acknowledgements


async def test_an_end_is_acknowledged_when_nothing_is_to_be_written(scene: Scene) -> None:
    scene.reader.handle(frames.Chunk(JOB, 1, b"data"))
    assert scene.port.confirmed == []
    scene.reader.handle(frames.End(JOB, 1, "completed"))
    assert scene.port.confirmed == [(JOB, 1, frames.ALL_FRAMES)]


@pytest.mark.parametrize("attempt", [0, 1, 2])
async def test_an_end_of_a_run_that_the_worker_does_not_hold_is_acknowledged(
    scene: Scene, attempt: int
) -> None:
    scene.worker.release(JOB)
    scene.reader.handle(frames.End(JOB, attempt, "completed"))
    assert scene.port.confirmed == [(JOB, attempt, frames.ALL_FRAMES)]


@pytest.mark.parametrize("is_written", [True, False])
async def test_an_end_is_acknowledged_when_it_is_in_the_store(*, is_written: bool) -> None:
    sink = WritingSink()
    scene = Scene(sink)
    scene.reader.handle(frames.End(JOB, 1, "completed"))
    # It is sent again over a new connection.
    scene.reader.handle(frames.End(JOB, 1, "completed"))
    assert (scene.port.confirmed, scene.worker.unwritten) == ([], {JOB: 1})
    newer = Port()
    scene.worker.port = newer
    sink.finish(is_written=is_written)
    await asyncio.wait([sink.task])
    await asyncio.sleep(0)
    # An end that is not in the store is not acknowledged later either.
    assert scene.worker.unwritten == ({} if is_written else {JOB: 1})
    assert newer.confirmed == ([(JOB, 1, frames.ALL_FRAMES)] if is_written else [])
    assert scene.port.confirmed == []


async def test_the_frames_that_the_sink_has_are_counted(scene: Scene) -> None:
    scene.reader.handle(frames.Head(JOB, 1, 200, "text/event-stream"))
    scene.reader.handle(frames.Chunk(JOB, 1, b"da", more=True))
    scene.reader.handle(frames.Chunk(JOB, 1, b"ta"))
    await scene.output(b'{"a": ', more=True)
    assert (scene.hold.received, scene.hold.complete) == (4, 3)
    await scene.output(b"1}")
    assert (scene.hold.received, scene.hold.complete) == (5, 4)


async def test_a_frame_from_a_connection_that_was_replaced_is_ignored(scene: Scene) -> None:
    scene.worker.port = Port()
    scene.reader.handle(frames.Chunk(JOB, 1, b"data"))
    assert (scene.sink.calls, scene.hold.received) == ([], 0)


class WritingSink(RecordingSink):
    """A sink whose end is written by a task."""

    def end(self, attempt: int, end: RunEnd) -> Any:
        super().end(attempt, end)
        self._written: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        self.task = asyncio.ensure_future(self._write())
        return self.task

    async def _write(self) -> bool:
        return await self._written

    def finish(self, *, is_written: bool) -> None:
        self._written.set_result(is_written)


# Frames and sinks


async def test_each_frame_goes_to_the_sink_of_its_run(scene: Scene) -> None:
    scene.reader.handle(frames.Head(JOB, 1, 200, "text/event-stream"))
    scene.reader.handle(frames.Chunk(JOB, 1, b"data", more=True))
    await scene.output(b'{"a": 1}', b'{"tokens": 3}')
    await scene.output(b"2", whole=True)
    scene.reader.handle(frames.End(JOB, 1, "completed"))
    assert scene.sink.calls == [
        ("head", 1, Head(200, "text/event-stream")),
        ("chunk", 1, b"data", True),
        ("output", 1, b'{"a": 1}', b'{"tokens": 3}', False),
        ("output", 1, b"2", b"", True),
        ("end", 1, RunEnd(Ending.COMPLETED)),
    ]
    assert scene.hold.received == 5
    assert scene.port.messages == []
    assert scene.worker.credit == 1


@pytest.mark.parametrize(
    "frame",
    [
        frames.Head("b", 1, 200, "text/plain"),
        frames.Chunk(JOB, 2, b"late"),
        frames.Output(JOB, 0, b"{"),
        frames.End(JOB, 2, "lost"),
    ],
)
async def test_a_frame_of_a_run_that_the_worker_does_not_hold_is_ignored(
    scene: Scene, frame: frames.Head | frames.Chunk | frames.Output | frames.End
) -> None:
    await scene.handle(frame)
    assert (scene.sink.calls, scene.port.messages) == ([], [])
    assert (scene.worker.ignored, scene.hold.received) == (1, 0)


@pytest.mark.parametrize(
    "frame",
    [
        frames.Head(JOB, 1, 200, "text/plain"),
        frames.Chunk(JOB, 1, b"data"),
        frames.Output(JOB, 1, b"1"),
    ],
)
@pytest.mark.parametrize(
    ("verdict", "error"), [(SinkVerdict.TOO_LARGE, OVERFLOW), (SinkVerdict.HEADLESS, NO_HEAD)]
)
async def test_the_verdict_of_a_sink_can_cut_the_run(
    frame: frames.Head | frames.Chunk | frames.Output, verdict: SinkVerdict, error: JobError
) -> None:
    scene = Scene(RecordingSink(verdict))
    await scene.handle(frame)
    await scene.handle(frame)
    # The sink ignores the second end.
    assert scene.sink.calls[1] == ("end", 1, RunEnd(Ending.REFUSED, error))
    scene.assert_stopped()


@pytest.mark.parametrize(
    ("verdict", "ignored"), [(SinkVerdict.REPEATED, 1), (SinkVerdict.IGNORED, 0)]
)
async def test_output_without_a_use_does_not_end_the_run(
    verdict: SinkVerdict, ignored: int
) -> None:
    scene = Scene(RecordingSink(verdict))
    scene.reader.handle(frames.Head(JOB, 1, 200, "text/plain"))
    assert len(scene.sink.calls) == 1
    assert scene.port.messages == []
    assert scene.worker.ignored == ignored


@pytest.mark.parametrize(
    ("status", "content_type"), [(199, "text/plain"), (600, "text/plain"), (200, "a\r\nb: c")]
)
async def test_an_invalid_head_cuts_the_run(status: int, content_type: str) -> None:
    scene = Scene(RecordingSink(takes_values=False))
    scene.reader.handle(frames.Head(JOB, 1, status, content_type))
    [(name, attempt, end)] = scene.sink.calls
    assert (name, attempt, end.ending, end.error.code) == ("end", 1, Ending.REFUSED, ENGINE_ERROR)
    scene.assert_stopped()


async def test_a_second_head_is_ignored_also_if_it_is_invalid() -> None:
    scene = Scene(RecordingSink(takes_values=False))
    scene.reader.handle(frames.Head(JOB, 1, 200, "text/plain"))
    scene.reader.handle(frames.Head(JOB, 1, 999, "text/plain"))
    assert scene.sink.calls == [("head", 1, Head(200, "text/plain"))]
    assert (scene.worker.ignored, scene.port.messages) == (1, [])


# Ends


@pytest.mark.parametrize(
    ("frame", "end"),
    [
        (frames.End(JOB, 1, "completed", "code", "message"), RunEnd(Ending.COMPLETED)),
        (frames.End(JOB, 1, "released", "code", "message"), RunEnd(Ending.RELEASED)),
        (frames.End(JOB, 1, "failed"), RunEnd(Ending.FAILED, JobError(ENGINE_ERROR, ""))),
        (
            frames.End(JOB, 1, "failed", "engine_dead", "It died."),
            RunEnd(Ending.FAILED, JobError("engine_dead", "It died.")),
        ),
        (
            frames.End(JOB, 1, "failed", "No Code", "x" * (MESSAGE_CHARACTERS + 1)),
            RunEnd(Ending.FAILED, JobError(ENGINE_ERROR, "x" * MESSAGE_CHARACTERS)),
        ),
        (frames.End(JOB, 1, "lost"), RunEnd(Ending.LOST, WORKER_LOST)),
        (
            frames.End(JOB, 1, "lost", "engine_hung", "It hung."),
            RunEnd(Ending.LOST, JobError("engine_hung", "It hung.")),
        ),
    ],
)
async def test_the_end_of_a_run_has_a_valid_error(
    scene: Scene, frame: frames.End, end: RunEnd
) -> None:
    scene.reader.handle(frame)
    assert scene.sink.calls == [("end", 1, end)]
    assert scene.worker.holds == {}


# Output values


async def test_parts_of_a_value_are_joined(scene: Scene) -> None:
    await scene.output(b'"a', more=True)
    await scene.output(b"", more=True)
    await scene.output(b'b"', b'{"tokens": 1}')
    await scene.output(b"[1,", more=True)
    await scene.output(b"2]", whole=True)
    await scene.output(b"3")
    assert scene.sink.calls == [
        ("output", 1, b'"ab"', b'{"tokens": 1}', False),
        ("output", 1, b"[1,2]", b"", True),
        ("output", 1, b"3", b"", False),
    ]
    assert (scene.hold.parts, scene.hold.parts_size) == ([], 0)


async def test_a_large_value_is_checked_in_a_thread(scene: Scene) -> None:
    value = b'"' + b"x" * INLINE_MAX_BYTES + b'"'
    await scene.output(value)
    assert scene.sink.calls == [("output", 1, value, b"", False)]
    await scene.output(value[1:])
    assert scene.sink.calls[1:] == [("end", 1, RunEnd(Ending.REFUSED, NO_JSON))]


@pytest.mark.parametrize("value", INVALID_JSON, ids=range(len(INVALID_JSON)))
@pytest.mark.parametrize("whole", [True, False])
async def test_invalid_json_cuts_the_run(scene: Scene, value: bytes, whole: bool) -> None:
    await scene.output(value, whole=whole)
    scene.assert_cut(NO_JSON)


@pytest.mark.parametrize("value", INVALID_JSON, ids=range(len(INVALID_JSON)))
async def test_invalid_json_in_parts_cuts_the_run(scene: Scene, value: bytes) -> None:
    await scene.output(value[:1], more=True)
    assert scene.sink.calls == []
    await scene.output(value[1:])
    scene.assert_cut(NO_JSON)


@pytest.mark.parametrize("metrics", [*INVALID_JSON[1:], b'"' + b"x" * METRICS_MAX_BYTES + b'"'])
async def test_invalid_metrics_cut_the_run(scene: Scene, metrics: bytes) -> None:
    await scene.output(b"1", metrics)
    scene.assert_cut(NO_JSON)


async def test_parts_above_the_limit_cut_the_run(scene: Scene) -> None:
    most = OUTPUT_MAX_BYTES - 2 * ELEMENT_OVERHEAD_BYTES
    await scene.output(b"x" * most, more=True)
    assert scene.sink.calls == []
    await scene.output(b"x", more=True)
    scene.assert_cut(OVERFLOW)
    assert scene.hold.parts == []


async def test_empty_parts_count_towards_the_limit(scene: Scene) -> None:
    await scene.output(b"x" * (OUTPUT_MAX_BYTES - 11 * ELEMENT_OVERHEAD_BYTES), more=True)
    for _ in range(10):
        await scene.output(b"", more=True)
    assert scene.sink.calls == []
    await scene.output(b"", more=True)
    scene.assert_cut(OVERFLOW)


async def test_the_last_part_counts_towards_the_limit(scene: Scene) -> None:
    most = OUTPUT_MAX_BYTES - 2 * ELEMENT_OVERHEAD_BYTES
    await scene.output(b'"' + b"x" * (most - 1), more=True)
    await scene.output(b'"')
    scene.assert_cut(OVERFLOW)


@pytest.mark.parametrize("value", INVALID_JSON, ids=range(len(INVALID_JSON)))
async def test_values_are_neither_kept_nor_checked_for_a_sink_without_a_use(value: bytes) -> None:
    scene = Scene(RecordingSink(SinkVerdict.IGNORED, takes_values=False))
    await scene.output(value, more=True)
    await scene.output(value)
    assert (scene.hold.parts, scene.sink.calls, scene.port.messages) == ([], [], [])
    assert scene.hold.received == 2


async def test_parts_of_a_stopped_run_are_not_kept(scene: Scene) -> None:
    """Its output has no use, but the worker may not have received the stop yet."""
    await scene.output(b'"a', more=True)
    scene.worker.stop(JOB, now=0.0)
    for _ in range(100):
        await scene.output(b"x" * 10_000, more=True)
    kept = sum(map(len, scene.hold.parts))
    assert kept <= len(b'"a')
