"""Log lines as `key=value` on standard error: the chain of structlog processors for all lines.

Lines that an unauthenticated client can cause, with neither a key nor the worker token, are rate
limited. These are the events in `UNTRUSTED_EVENTS`, and all records of libraries (uvicorn,
websockets, asyncio), by the place in the code that wrote them. Add every new event that anyone can
cause to that table.
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

UNTRUSTED_EVENTS = frozenset({"api.bug", "edge.refused", "worker.refused"})

# Limits of a value, in a line that an unauthenticated client can cause and in any other line.
UNTRUSTED_VALUE_CHARACTERS = 200
VALUE_CHARACTERS = 1_000

# Limit of a line that an unauthenticated client can cause. With `limit.MAX_BYTES_PER_WINDOW`, an
# hour of such lines stays below 1 MB.
UNTRUSTED_LINE_BYTES = 8_000

# Limit of a traceback: a third of it for the beginning, the rest for the end.
TRACEBACK_CHARACTERS = 6_000

# Fields that the processors themselves add; their values are not shortened.
PROCESSOR_FIELDS = ("event", "level", "time", "exception")

# Fields that are passed between processors and never written.
SITE_FIELD = "_site"
IS_LIMITED_FIELD = "_is_limited"

Fields = dict[str, Any]
"""The fields of an event, as structlog passes them from one processor to the next."""


class Lines:
    """The processors of the chain, and the rate limit that they share."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._limit = LineLimit()
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
        """Write the number of suppressed lines of all names, or of those whose minute is over."""
        log = structlog.get_logger()
        for name, count in self._limit.take_suppressed(self._clock(), all_of_them=all_of_them):
            log.warning("log.suppressed", name=name, lines=count)
        self._timer = None
        self._set_timer()

    def _admit(self, _logger: object, _method: str, fields: Fields) -> Fields:
        """Drop a line that exceeds the rate limit, before the more expensive processors run."""
        site = fields.pop(SITE_FIELD, "")
        if site or fields["event"] in UNTRUSTED_EVENTS:
            if not self._limit.admit(site or fields["event"], self._clock()):
                self._set_timer()
                raise structlog.DropEvent
            fields[IS_LIMITED_FIELD] = True
        return fields

    def _write(self, _logger: object, _method: str, fields: Fields) -> str:
        """Return the line with shortened values and escaped control characters."""
        is_limited = fields.pop(IS_LIMITED_FIELD, False)
        characters = UNTRUSTED_VALUE_CHARACTERS if is_limited else VALUE_CHARACTERS
        for key, value in fields.items():
            if key not in PROCESSOR_FIELDS and not isinstance(value, int | float | None):
                fields[key] = shorten(escape_controls(str(value), keep="\n"), characters)
        if "exception" in fields:
            fields["exception"] = _middle_cut(fields["exception"])
        line = escape_controls(str(self._render(None, "", fields)))
        if is_limited:
            data = line.encode()[:UNTRUSTED_LINE_BYTES]
            self._limit.spend(len(data), self._clock())
            return data.decode(errors="ignore")
        return line

    def _set_timer(self) -> None:
        """Schedule the report of suppressed lines; without an event loop it is written at exit."""
        due = self._limit.next_due()
        if self._timer is not None or due is None:
            return
        try:
            loop = asyncio.get_running_loop()
        except RuntimeError:
            return
        self._timer = loop.call_later(max(0.0, due - self._clock()), self.report)


class LibraryRecords(logging.Handler):
    """Passes log records of libraries to the same chain, with the logger's name as `event`."""

    def emit(self, record: logging.LogRecord) -> None:
        try:
            text = record.getMessage().strip()
        except (TypeError, ValueError):
            # The arguments do not match the format string.
            text = str(record.msg)
        log = structlog.get_logger()
        write = log.error if record.levelno >= logging.ERROR else log.warning
        fields = {SITE_FIELD: f"{record.name}:{record.lineno}", "exc_info": record.exc_info}
        write(record.name, text=text, **fields)


def configure_logging(level: str, out: TextIO | None = None) -> None:
    """Write own events from `level` up, and warnings of libraries, to `out` or standard error."""
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
    """Remove the middle of a traceback that is too long, and keep its beginning and its end."""
    if len(trace) <= TRACEBACK_CHARACTERS:
        return trace
    head = TRACEBACK_CHARACTERS // 3
    return f"{trace[:head]}\n  [cut]\n{trace[head - TRACEBACK_CHARACTERS :]}"
