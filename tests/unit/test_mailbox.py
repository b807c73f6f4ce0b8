"""The mailbox of one job: the data that a relay sees, and back-pressure on the worker."""

import asyncio

import pytest

from proxy.jobs.model import Job, JobId, Outcome
from proxy.service.mailbox import (
    CHUNK_OVERHEAD_BYTES,
    EVENT_MAX_BYTES,
    STREAM_MAX_BYTES,
    Head,
    Mailbox,
)
from proxy.wire.flow import HIGH_WATERMARK_BYTES
from proxy.wire.frames import STREAM_WINDOW

STREAM = Head(200, "text/event-stream; charset=utf-8")
JSON = Head(200, "application/json")
ID = JobId("a")


class Port:
    """A worker that records the frames that it receives."""

    def __init__(self) -> None:
        self.told: list[tuple[str, str, int]] = []

    def offer(self, job: Job) -> None:
        self.told.append(("offer", job.id, job.attempt))

    def stop(self, job_id: JobId, attempt: int) -> None:
        self.told.append(("stop", job_id, attempt))

    def pause(self, job_id: JobId, attempt: int) -> None:
        self.told.append(("pause", job_id, attempt))

    def resume(self, job_id: JobId, attempt: int) -> None:
        self.told.append(("resume", job_id, attempt))

    def close(self, reason: str) -> None:
        self.told.append(("close", reason, 0))


@pytest.fixture
def port() -> Port:
    return Port()


@pytest.fixture
def mailbox(port: Port) -> Mailbox:
    mailbox = Mailbox(ID, max_answer=10_000_000)
    mailbox.begin(1, port)
    return mailbox


@pytest.mark.parametrize(("status", "is_stream"), [(200, True), (400, False), (503, False)])
def test_an_error_is_not_a_stream_regardless_of_its_type(status: int, is_stream: bool) -> None:
    assert Head(status, STREAM.content_type).is_stream is is_stream


def test_buffered_output_is_passed_on_in_one_piece(mailbox: Mailbox) -> None:
    mailbox.put_head(STREAM)
    mailbox.put_chunk(b"data: 1\n\n", more=False)
    mailbox.put_chunk(b"data: 2\n\n", more=False)
    assert mailbox.consume() == b"data: 1\n\ndata: 2\n\n"
    assert mailbox.consume() == b""


def test_an_incomplete_event_is_not_passed_on(mailbox: Mailbox) -> None:
    mailbox.put_head(STREAM)
    mailbox.put_chunk(b"data: 1", more=True)
    assert mailbox.consume() == b""
    mailbox.put_chunk(b"\n\n", more=False)
    assert mailbox.consume() == b"data: 1\n\n"


def test_a_large_event_is_passed_on_as_its_pieces_arrive(mailbox: Mailbox) -> None:
    mailbox.put_head(STREAM)
    part = b"x" * (EVENT_MAX_BYTES // 4)
    for _ in range(4):
        assert mailbox.put_chunk(part, more=True)
        assert mailbox.consume() == b""
    assert mailbox.put_chunk(b"yz", more=True)
    assert (mailbox.consume(), mailbox.is_mid_event) == (4 * part + b"yz", True)
    assert mailbox.put_chunk(b"z", more=True)
    assert mailbox.put_chunk(b"\n\n", more=False)
    assert mailbox.put_chunk(b"data: 1\n\n", more=False)
    assert mailbox.consume(1) == b"z"
    assert mailbox.is_mid_event
    assert mailbox.consume(1) == b"\n\n"
    assert not mailbox.is_mid_event
    assert mailbox.put_chunk(b"data: 2", more=True)  # the next event is buffered again
    assert (mailbox.consume(), mailbox.is_mid_event) == (b"data: 1\n\n", False)


def test_an_event_of_any_size_passes_a_reader_that_keeps_up(mailbox: Mailbox) -> None:
    mailbox.put_head(STREAM)
    for _ in range(100):
        assert mailbox.put_chunk(b"x" * 100_000, more=True)
        mailbox.consume()
        assert mailbox.backlog <= EVENT_MAX_BYTES


def test_a_slow_reader_is_dropped_in_the_middle_of_an_event(mailbox: Mailbox) -> None:
    mailbox.put_head(STREAM)
    taken = 0
    while mailbox.put_chunk(b"x" * 10_000, more=True):
        taken += 1
    assert taken <= STREAM_MAX_BYTES // 10_000


def test_buffered_output_never_blocks_a_worker_with_a_window(mailbox: Mailbox, port: Port) -> None:
    """The worker sends a window and waits: even if all of it is buffered, it may send the rest."""
    mailbox.put_head(STREAM)
    for size in (1, 1_000, 16 * 1024, 64 * 1024):
        unanswered = resumed = 0
        for _ in range(4 * STREAM_WINDOW // size if size > 1 else 10):
            assert unanswered < STREAM_WINDOW
            assert mailbox.put_chunk(b"x" * size, more=True)
            mailbox.consume()
            unanswered += size
            if len(port.told) > resumed:
                resumed, unanswered = len(port.told), 0
        mailbox.put_chunk(b"\n\n", more=False)
        mailbox.consume()
        port.told.clear()


def test_an_answer_that_is_not_a_stream_is_never_split(mailbox: Mailbox) -> None:
    mailbox.put_head(JSON)
    for _ in range(10):
        mailbox.put_chunk(b"x" * EVENT_MAX_BYTES, more=True)
    assert mailbox.consume(float("inf")) == b""
    mailbox.put_chunk(b"", more=False)
    assert len(mailbox.consume(float("inf"))) == 10 * EVENT_MAX_BYTES


def test_a_slow_reader_pauses_its_worker_once_and_resumes_it_once(
    mailbox: Mailbox, port: Port
) -> None:
    mailbox.put_head(STREAM)
    for _ in range(20):
        mailbox.put_chunk(b"x" * 10_000, more=False)
    assert port.told == [("pause", "a", 1)]
    while mailbox.consume(10_000):
        pass
    assert port.told == [("pause", "a", 1), ("resume", "a", 1)]


def test_a_reader_that_keeps_up_never_pauses_its_worker(mailbox: Mailbox, port: Port) -> None:
    mailbox.put_head(STREAM)
    for _ in range(4):
        mailbox.put_chunk(b"x" * (STREAM_WINDOW // 4), more=False)
        mailbox.consume()
    assert port.told == [("resume", "a", 1)] * 2


def test_one_write_is_bounded(mailbox: Mailbox) -> None:
    mailbox.put_head(STREAM)
    for _ in range(100):
        mailbox.put_chunk(b"x" * 1_000, more=False)
    assert len(mailbox.consume(20_000)) == 20_000
    assert mailbox.backlog == 80_000


def test_an_answer_that_is_not_streamed_is_never_paused(mailbox: Mailbox, port: Port) -> None:
    mailbox.put_head(JSON)
    assert mailbox.put_chunk(b"x" * HIGH_WATERMARK_BYTES * 3, more=False)
    assert port.told == []


def test_a_worker_that_ignores_pause_exceeds_the_limit(mailbox: Mailbox) -> None:
    mailbox.put_head(STREAM)
    assert mailbox.put_chunk(b"x" * (STREAM_MAX_BYTES - 2 * CHUNK_OVERHEAD_BYTES), more=False)
    assert not mailbox.put_chunk(b"x", more=False)


def test_empty_chunks_count_towards_the_limit(mailbox: Mailbox) -> None:
    mailbox.put_head(STREAM)
    taken = 0
    while mailbox.put_chunk(b"", more=taken % 2 == 0):
        taken += 1
    assert taken <= 2 * STREAM_MAX_BYTES // CHUNK_OVERHEAD_BYTES


def test_the_size_of_an_answer_is_limited() -> None:
    mailbox = Mailbox(ID, max_answer=10)
    mailbox.put_head(JSON)
    assert not mailbox.put_chunk(b"x" * 11, more=True)


def test_a_new_attempt_starts_with_an_empty_mailbox(mailbox: Mailbox, port: Port) -> None:
    mailbox.put_head(STREAM)
    mailbox.put_chunk(b"data: old\n\n", more=False)
    mailbox.put_chunk(b"data: ha", more=True)
    mailbox.requeue()
    assert not mailbox.is_taken
    mailbox.begin(2, port)
    mailbox.put_head(STREAM)
    mailbox.put_chunk(b"data: new\n\n", more=False)
    assert mailbox.consume() == b"data: new\n\n"


def test_the_first_end_counts(mailbox: Mailbox) -> None:
    mailbox.end(Outcome(answered=True))
    mailbox.end(Outcome(answered=False))
    assert mailbox.outcome == Outcome(answered=True)


async def test_any_number_of_changes_wake_the_relay_once(mailbox: Mailbox) -> None:
    waiting = asyncio.create_task(mailbox.wait(None))
    await asyncio.sleep(0)
    mailbox.put_head(STREAM)
    mailbox.put_chunk(b"data: 1\n\n", more=False)
    mailbox.end(Outcome(answered=True))
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
