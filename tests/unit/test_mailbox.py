"""The mailbox of one job: the data that a relay sees, and back-pressure on the worker."""

import asyncio

import pytest
from harness.data.jobs import submission
from harness.worker.port import Port

from proxy.jobs.model import Head, InteractiveJob, Millis, Outcome, WorkerId
from proxy.jobs.policy import RunEnd
from proxy.service.mailbox import (
    CHUNK_OVERHEAD_BYTES,
    EVENT_MAX_BYTES,
    STREAM_MAX_BYTES,
    Mailbox,
)
from proxy.service.ports import SinkVerdict
from proxy.wire.flow import HIGH_WATERMARK_BYTES
from proxy.wire.frames import STREAM_WINDOW

STREAM = Head(200, "text/event-stream; charset=utf-8")
JSON = Head(200, "application/json")
WORKER = WorkerId("w")
PAUSE = ("pause", "a", 1)
RESUME = ("resume", "a", 1)


def no_end(_: Mailbox, end: RunEnd) -> None:
    """Fail: the tests of this file end no run."""
    raise AssertionError(end)


def taken_mailbox(port: Port, max_answer: int = 10_000_000) -> Mailbox:
    """Return the mailbox of a job whose first run has begun."""
    job = InteractiveJob(submission("a"), sequence=1, created_at=Millis(0))
    mailbox = Mailbox(job, max_answer, no_end)
    job.take(WORKER, Millis(0))
    mailbox.begin(1, port)
    return mailbox


@pytest.fixture
def port() -> Port:
    return Port()


@pytest.fixture
def mailbox(port: Port) -> Mailbox:
    return taken_mailbox(port)


def put(mailbox: Mailbox, data: bytes, *, more: bool = False, attempt: int = 1) -> bool:
    """Put a chunk into the mailbox; return False if it is too large."""
    taken = mailbox.chunk(attempt, data, more=more)
    assert taken in (SinkVerdict.ACCEPTED, SinkVerdict.TOO_LARGE)
    return taken is SinkVerdict.ACCEPTED


@pytest.mark.parametrize(("status", "is_stream"), [(200, True), (400, False), (503, False)])
def test_an_error_is_not_a_stream_regardless_of_its_type(status: int, is_stream: bool) -> None:
    assert Head(status, STREAM.content_type).is_stream is is_stream


def test_buffered_output_is_passed_on_in_one_piece(mailbox: Mailbox) -> None:
    mailbox.head(1, STREAM)
    put(mailbox, b"data: 1\n\n")
    put(mailbox, b"data: 2\n\n")
    assert mailbox.consume() == b"data: 1\n\ndata: 2\n\n"
    assert mailbox.consume() == b""


def test_an_incomplete_event_is_not_passed_on(mailbox: Mailbox) -> None:
    mailbox.head(1, STREAM)
    put(mailbox, b"data: 1", more=True)
    assert mailbox.consume() == b""
    put(mailbox, b"\n\n")
    assert mailbox.consume() == b"data: 1\n\n"


def test_a_large_event_is_passed_on_as_its_pieces_arrive(mailbox: Mailbox) -> None:
    mailbox.head(1, STREAM)
    part = b"x" * (EVENT_MAX_BYTES // 4)
    for _ in range(4):
        assert put(mailbox, part, more=True)
        assert mailbox.consume() == b""
    assert put(mailbox, b"yz", more=True)
    assert (mailbox.consume(), mailbox.is_mid_event) == (4 * part + b"yz", True)
    assert put(mailbox, b"z", more=True)
    assert put(mailbox, b"\n\n")
    assert put(mailbox, b"data: 1\n\n")
    assert mailbox.consume(1) == b"z"
    assert mailbox.is_mid_event
    assert mailbox.consume(1) == b"\n\n"
    assert not mailbox.is_mid_event
    assert put(mailbox, b"data: 2", more=True)  # the next event is buffered again
    assert (mailbox.consume(), mailbox.is_mid_event) == (b"data: 1\n\n", False)


def test_an_event_of_any_size_passes_a_reader_that_keeps_up(mailbox: Mailbox) -> None:
    mailbox.head(1, STREAM)
    for _ in range(100):
        assert put(mailbox, b"x" * 100_000, more=True)
        mailbox.consume()
        assert mailbox.backlog <= EVENT_MAX_BYTES


def test_a_slow_reader_is_dropped_in_the_middle_of_an_event(mailbox: Mailbox) -> None:
    mailbox.head(1, STREAM)
    taken = 0
    while put(mailbox, b"x" * 10_000, more=True):
        taken += 1
    assert taken <= STREAM_MAX_BYTES // 10_000


def test_buffered_output_never_blocks_a_worker_with_a_window(mailbox: Mailbox, port: Port) -> None:
    """The worker sends a window and waits: even if all of it is buffered, it may send the rest."""
    mailbox.head(1, STREAM)
    for size in (1, 1_000, 16 * 1024, 64 * 1024):
        unanswered = resumed = 0
        for _ in range(4 * STREAM_WINDOW // size if size > 1 else 10):
            assert unanswered < STREAM_WINDOW
            assert put(mailbox, b"x" * size, more=True)
            mailbox.consume()
            unanswered += size
            if len(port.messages) > resumed:
                resumed, unanswered = len(port.messages), 0
        put(mailbox, b"\n\n")
        mailbox.consume()
        port.messages.clear()


def test_an_answer_that_is_not_a_stream_is_never_split(mailbox: Mailbox) -> None:
    mailbox.head(1, JSON)
    for _ in range(10):
        put(mailbox, b"x" * EVENT_MAX_BYTES, more=True)
    assert mailbox.consume(float("inf")) == b""
    put(mailbox, b"")
    assert len(mailbox.consume(float("inf"))) == 10 * EVENT_MAX_BYTES


def test_a_slow_reader_pauses_its_worker_once_and_resumes_it_once(
    mailbox: Mailbox, port: Port
) -> None:
    mailbox.head(1, STREAM)
    for _ in range(20):
        put(mailbox, b"x" * 10_000)
    assert port.messages == [PAUSE]
    while mailbox.consume(10_000):
        pass
    assert port.messages == [PAUSE, RESUME]


def test_a_reader_that_keeps_up_never_pauses_its_worker(mailbox: Mailbox, port: Port) -> None:
    mailbox.head(1, STREAM)
    for _ in range(4):
        put(mailbox, b"x" * (STREAM_WINDOW // 4))
        mailbox.consume()
    assert port.messages == [RESUME] * 2


def test_one_write_is_bounded(mailbox: Mailbox) -> None:
    mailbox.head(1, STREAM)
    for _ in range(100):
        put(mailbox, b"x" * 1_000)
    assert len(mailbox.consume(20_000)) == 20_000
    assert mailbox.backlog == 80_000


def test_an_answer_that_is_not_streamed_is_never_paused(mailbox: Mailbox, port: Port) -> None:
    mailbox.head(1, JSON)
    assert put(mailbox, b"x" * HIGH_WATERMARK_BYTES * 3)
    assert port.messages == []


def test_a_worker_that_ignores_pause_exceeds_the_limit(mailbox: Mailbox) -> None:
    mailbox.head(1, STREAM)
    assert put(mailbox, b"x" * (STREAM_MAX_BYTES - 2 * CHUNK_OVERHEAD_BYTES))
    assert not put(mailbox, b"x")


def test_empty_chunks_count_towards_the_limit(mailbox: Mailbox) -> None:
    mailbox.head(1, STREAM)
    taken = 0
    while put(mailbox, b"", more=taken % 2 == 0):
        taken += 1
    assert taken <= 2 * STREAM_MAX_BYTES // CHUNK_OVERHEAD_BYTES


@pytest.mark.parametrize(("size", "fits"), [(10, True), (11, False)])
def test_the_size_of_an_answer_is_limited(size: int, fits: bool) -> None:
    mailbox = taken_mailbox(Port(), max_answer=CHUNK_OVERHEAD_BYTES + 10)
    mailbox.head(1, JSON)
    assert put(mailbox, b"x" * size, more=True) is fits


def test_a_response_has_one_head_before_its_body(mailbox: Mailbox) -> None:
    assert mailbox.chunk(1, b"data: 1\n\n", more=False) is SinkVerdict.HEADLESS
    assert (mailbox.backlog, mailbox.consume()) == (0, b"")
    assert mailbox.head(1, STREAM) is SinkVerdict.ACCEPTED
    assert mailbox.head(1, JSON) is SinkVerdict.REPEATED
    assert mailbox.response_head == STREAM


def test_a_new_attempt_starts_with_an_empty_mailbox(mailbox: Mailbox, port: Port) -> None:
    mailbox.head(1, STREAM)
    put(mailbox, b"data: old\n\n")
    put(mailbox, b"data: ha", more=True)
    mailbox.job.release(counts=True)
    mailbox.requeue()
    assert not mailbox.is_taken
    assert (mailbox.response_head, mailbox.backlog, mailbox.consume()) == (None, 0, b"")
    mailbox.job.take(WORKER, Millis(0))
    mailbox.begin(2, port)
    assert mailbox.is_taken
    assert mailbox.head(1, JSON) is SinkVerdict.IGNORED
    mailbox.head(2, STREAM)
    assert mailbox.chunk(1, b"data: late\n\n", more=False) is SinkVerdict.IGNORED
    put(mailbox, b"data: new\n\n", attempt=2)
    assert mailbox.consume() == b"data: new\n\n"


def test_a_requeued_job_sends_nothing_to_its_earlier_worker(mailbox: Mailbox, port: Port) -> None:
    mailbox.head(1, STREAM)
    put(mailbox, b"x" * 2 * HIGH_WATERMARK_BYTES)
    assert port.messages == [PAUSE]
    mailbox.job.release(counts=True)
    mailbox.requeue()
    mailbox.consume()
    assert port.messages == [PAUSE]


def test_a_new_connection_of_the_worker_is_paused_again(mailbox: Mailbox, port: Port) -> None:
    mailbox.head(1, STREAM)
    put(mailbox, b"x" * 2 * HIGH_WATERMARK_BYTES)
    later = Port()
    assert mailbox.reattach(1, later) is SinkVerdict.ACCEPTED
    assert (port.messages, later.messages) == ([PAUSE], [PAUSE])
    while mailbox.consume():
        pass
    assert (port.messages, later.messages) == ([PAUSE], [PAUSE, RESUME])


def test_a_dropped_run_is_not_resumed(mailbox: Mailbox, port: Port) -> None:
    mailbox.head(1, STREAM)
    put(mailbox, b"x" * 2 * HIGH_WATERMARK_BYTES)
    mailbox.drop(0)
    mailbox.drop(1)
    while mailbox.consume():
        pass
    assert port.messages == [PAUSE]


def test_an_ended_job_keeps_the_output_that_its_client_has_not_read(mailbox: Mailbox) -> None:
    mailbox.head(1, STREAM)
    put(mailbox, b"data: 1\n\n")
    mailbox.close(Outcome(answered=True))
    assert mailbox.chunk(1, b"data: late\n\n", more=False) is SinkVerdict.IGNORED
    assert mailbox.consume() == b"data: 1\n\n"


async def test_any_number_of_changes_wake_the_relay_once(mailbox: Mailbox) -> None:
    waiting = asyncio.create_task(mailbox.wait(None))
    await asyncio.sleep(0)
    mailbox.head(1, STREAM)
    put(mailbox, b"data: 1\n\n")
    mailbox.close(Outcome(answered=True))
    await waiting
    assert mailbox.consume() == b"data: 1\n\n"


async def test_an_alarm_fires_at_its_time(mailbox: Mailbox) -> None:
    waiting = asyncio.create_task(mailbox.wait(10.0))
    await asyncio.sleep(0)
    mailbox.tick(9.9)
    await asyncio.sleep(0)
    assert not waiting.done()
    mailbox.tick(10.0)
    await waiting


def test_a_reader_that_stops_reading_is_disconnected(mailbox: Mailbox) -> None:
    cut: list[bool] = []
    mailbox.abort = lambda: cut.append(True)
    mailbox.writing(100.0)
    mailbox.tick(159.9)
    assert not cut
    mailbox.tick(160.0)
    assert cut == [True]
