"""Log lines that anyone can cause are rate limited and safe to display."""

import io
import logging
import re
from collections.abc import Iterator

import pytest
import structlog

from proxy.log.limit import MAX_LINES_PER_NAME, LineLimit
from proxy.log.lines import TRACEBACK_CHARACTERS, LibraryRecords, Lines

HOUR_SECONDS = 3_600
FLOOD_LINES = 5_000


class Log:
    """The written lines, and a fake clock for the rate limit."""

    def __init__(self) -> None:
        self.out = io.StringIO()
        self.now = 0.0
        self.lines = Lines(lambda: self.now)
        structlog.configure(
            processors=self.lines.processors(),
            logger_factory=structlog.PrintLoggerFactory(self.out),
        )

    @property
    def written(self) -> list[str]:
        return self.out.getvalue().splitlines()

    def suppressed(self) -> int:
        """Return the sum of all reported counts of suppressed lines."""
        counts = re.findall(r"event=log\.suppressed .*lines=(\d+)", self.out.getvalue())
        return sum(map(int, counts))


@pytest.fixture
def log() -> Iterator[Log]:
    yield Log()
    structlog.reset_defaults()


def test_ten_a_minute_then_one_line_a_minute_with_the_count() -> None:
    limit = LineLimit()
    admitted = [now for now in range(600) if limit.admit("x", now)]
    assert len(admitted) == 100
    for first, second in zip(admitted, admitted[MAX_LINES_PER_NAME:], strict=False):
        # The limit applies to any minute, not to fixed windows.
        assert second - first >= 60
    assert limit.take_suppressed(69.0) == []
    assert limit.take_suppressed(70.0) == [("x", 500)]
    assert limit.take_suppressed(600.0) == []


def test_a_flood_of_one_name_does_not_suppress_others(log: Log) -> None:
    for _ in range(100):
        structlog.get_logger().warning("worker.refused", code=401)
        # Unauthenticated clients cannot cause this event, so it is never suppressed.
        structlog.get_logger().warning("run.lost", job="j")
    structlog.get_logger().warning("edge.refused", code="bad_request")
    assert sum("event=worker.refused" in line for line in log.written) == 10
    assert sum("event=run.lost" in line for line in log.written) == 100
    assert sum("event=edge.refused" in line for line in log.written) == 1
    log.lines.report(all_of_them=True)
    assert log.suppressed() == 90


def test_an_hour_of_five_thousand_refusals_a_second_is_below_a_megabyte(log: Log) -> None:
    """The first second has the flood, and later ones 7 lines each, to keep the test fast.

    The number of suppressed lines has no effect on the size of the log.
    """
    logger = structlog.get_logger()
    handler = LibraryRecords()
    worst = "\U0001f600" * 10_000
    records = [
        logging.LogRecord("uvicorn.error", logging.ERROR, "x.py", line, worst, (), None)
        for line in range(5)
    ]
    records[0].exc_info = (RuntimeError, RuntimeError(worst), None)
    records[1].exc_info = records[0].exc_info
    records[2].exc_info = (RuntimeError, RuntimeError('"' * 10_000), None)
    sent = 0
    for second in range(HOUR_SECONDS):
        for _ in range(FLOOD_LINES if second == 0 else 2):
            log.now = float(second)
            logger.warning("worker.refused", path=worst, reason=worst, code=401)
            sent += 1
        for record in records:
            handler.emit(record)
            sent += 1
        log.lines.report()
    log.lines.report(all_of_them=True)
    assert len(log.out.getvalue().encode()) < 1_000_000
    assert log.suppressed() + sum("log.suppressed" not in line for line in log.written) == sent


def test_an_untrusted_value_is_cut_to_two_hundred_characters(log: Log) -> None:
    structlog.get_logger().warning("worker.refused", path="p" * 1_000, reason="\x1b" * 1_000)
    [line] = log.written
    assert re.search(r" path=(\S+)", line)[1] == "p" * 199 + "…"  # type: ignore[index]
    assert len(re.search(r" reason=(\S+)", line)[1]) == 200  # type: ignore[index]


def test_a_line_has_no_effect_on_a_terminal(log: Log) -> None:
    attack = "\x1b]0;owned\x07\r\n\x9b2J\u202e\u2028\ttime=now level=info"
    structlog.get_logger().warning("worker.refused", path=attack)
    structlog.get_logger().info("worker.says", text=attack, models=[attack])
    structlog.get_logger().error("api.bug", path="/x", exc_info=ValueError(attack))
    LibraryRecords().emit(
        logging.LogRecord(attack, logging.ERROR, "x.py", 1, "%s", (attack,), None)
    )
    assert len(log.written) == 4
    assert not re.search("[^ -~…\n]", log.out.getvalue())
    assert log.out.getvalue().count("]0;owned") == 6


def test_a_traceback_keeps_its_beginning_and_its_end(log: Log) -> None:
    def deep() -> None:
        deeper()

    def deeper() -> None:
        deep()

    try:
        deep()
    except RecursionError:
        structlog.get_logger().exception("api.bug")
    [line] = log.written
    assert len(line) < TRACEBACK_CHARACTERS * 1.2
    assert "Traceback (most recent call last)" in line
    assert "RecursionError: maximum recursion depth exceeded" in line


def test_a_record_of_a_library_has_the_same_format(log: Log) -> None:
    handler = LibraryRecords()
    handler.emit(logging.LogRecord("asyncio", logging.WARNING, "x.py", 7, "slow: %d", (3,), None))
    handler.emit(logging.LogRecord("asyncio", logging.ERROR, "x.py", 8, "bad: %d", ("x",), None))
    assert re.fullmatch(r'time=\S+ level=warning event=asyncio text="slow: 3"', log.written[0])
    assert 'level=error event=asyncio text="bad: %d"' in log.written[1]


def test_the_limit_uses_the_injected_clock(log: Log) -> None:
    for minute in range(3):
        log.now = minute * 60.0
        for _ in range(20):
            structlog.get_logger().warning("worker.refused")
    assert len(log.written) == 30
