"""Log lines as `key=value` on standard error: the chain of processors that every line passes.

Lines that a stranger, who has neither a key nor the worker token, can cause are limited. These are
the events in `STRANGERS`, and all records of libraries (uvicorn, websockets, asyncio), by the place
in the code that wrote them. A new event that anyone can cause belongs into the table.
"""

import asyncio
import atexit
import logging
import sys
import time
from collections.abc import Callable
from typing import Any, TextIO

import structlog

from proxy.log.limit import LineLimit
from proxy.wire.escaping import escape_controls, shorten

STRANGERS = frozenset({"api.bug", "edge.refused", "worker.refused"})
FOREIGN_CHARACTERS = 200  # of a value in a line that a stranger caused
VALUE_CHARACTERS = 1_000  # of any other value
LINE_BYTES = 8_000  # of a line that a stranger caused; with `limit.BYTES`, an hour stays below 1 MB
TRACE_CHARACTERS = 6_000  # of a traceback: its beginning, and twice as much of its end
OWN = ("event", "level", "time", "exception")
SITE, IS_LIMITED = "_site", "_is_limited"  # fields between the processors, never written

Fields = dict[str, Any]
"""An event's fields, as structlog's processors pass them on."""


class Lines:
    """The processors, and the limit that they share."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock, self._limit = clock, LineLimit()
        self._render = structlog.processors.LogfmtRenderer(key_order=["time", "level", "event"])
        self._timer: asyncio.TimerHandle | None = None

    def processors(self) -> list[Any]:
        """Return the chain, for `structlog.configure`."""
        return [
            self._admit,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True, key="time"),
            structlog.processors.format_exc_info,
            self._write,
        ]

    def report(self, *, all_of_them: bool = False) -> None:
        """Write how many lines of each name were suppressed, where a minute is over."""
        log = structlog.get_logger()
        for name, count in self._limit.take_suppressed(self._clock(), all_of_them=all_of_them):
            log.warning("log.suppressed", name=name, lines=count)
        self._timer = None
        self._set_timer()

    def _admit(self, _logger: object, _method: str, fields: Fields) -> Fields:
        """Drop a line that is one too many, before anything is spent on it."""
        site = fields.pop(SITE, "")
        if site or fields["event"] in STRANGERS:
            if not self._limit.admit(site or fields["event"], self._clock()):
                self._set_timer()
                raise structlog.DropEvent
            fields[IS_LIMITED] = True
        return fields

    def _write(self, _logger: object, _method: str, fields: Fields) -> str:
        """Return the line: values escaped and cut, and no character in it that a terminal obeys."""
        is_limited = fields.pop(IS_LIMITED, False)
        most = FOREIGN_CHARACTERS if is_limited else VALUE_CHARACTERS
        for key, value in fields.items():
            if key not in OWN and not isinstance(value, int | float | None):
                fields[key] = shorten(escape_controls(str(value), keep="\n"), most)
        if "exception" in fields:
            fields["exception"] = _middle_cut(fields["exception"])
        line = escape_controls(str(self._render(None, "", fields)))
        if is_limited:
            data = line.encode()[:LINE_BYTES]
            self._limit.spend(len(data), self._clock())
            return data.decode(errors="ignore")
        return line

    def _set_timer(self) -> None:
        """Have the counts written when the first of them is due; outside of an event loop, at exit."""
        due = self._limit.next_due()
        if self._timer is not None or due is None:
            return
        try:
            loop = asyncio.get_running_loop()
        except RuntimeError:
            return
        self._timer = loop.call_later(max(0.0, due - self._clock()), self.report)


class LibraryRecords(logging.Handler):
    """Sends the records of libraries through the same chain: `event` is the name of the logger."""

    def emit(self, record: logging.LogRecord) -> None:
        """Write a record."""
        try:
            text = record.getMessage().strip()
        except (TypeError, ValueError):  # its arguments do not fit its text
            text = str(record.msg)
        log = structlog.get_logger()
        write = log.error if record.levelno >= logging.ERROR else log.warning
        fields = {SITE: f"{record.name}:{record.lineno}", "exc_info": record.exc_info}
        write(record.name, text=text, **fields)


def configure_logging(level: str, out: TextIO | None = None) -> None:
    """Send our events from `level` up, and the warnings of libraries, to `out` or standard error."""
    lines = Lines()
    structlog.configure(
        processors=lines.processors(),
        wrapper_class=structlog.make_filtering_bound_logger(
            logging.getLevelNamesMapping()[level.upper()]
        ),
        logger_factory=structlog.PrintLoggerFactory(out or sys.stderr),
        cache_logger_on_first_use=True,
    )
    logging.basicConfig(level=logging.WARNING, handlers=[LibraryRecords()])
    atexit.register(lines.report, all_of_them=True)


def _middle_cut(trace: str) -> str:
    """Cut the middle out of a traceback that is too long: it begins and ends with what matters."""
    if len(trace) <= TRACE_CHARACTERS:
        return trace
    head = TRACE_CHARACTERS // 3
    return f"{trace[:head]}\n  [cut]\n{trace[head - TRACE_CHARACTERS :]}"
