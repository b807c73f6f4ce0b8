"""Logging: events with fields, as `key=value` lines on stderr."""

import logging
import sys
import time
from collections.abc import Callable
from typing import Any

import structlog

from proxy.wire.escaping import escape_controls

Stage = Callable[[str], None]
"""Report in a few words what the worker does during its start."""

_LEVELS = {
    "debug": logging.DEBUG,
    "info": logging.INFO,
    "warning": logging.WARNING,
    "error": logging.ERROR,
}


def configure_logging(level: str) -> None:
    """Write the worker's events to stderr. Libraries log with `logging`, from warnings up."""
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True, key="time"),
            structlog.processors.format_exc_info,
            structlog.processors.LogfmtRenderer(key_order=["time", "level", "event"]),
            _escape,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(_LEVELS[level]),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
        cache_logger_on_first_use=True,
    )


def _escape(_logger: object, _method: str, line: Any) -> str:
    """Escape control characters in a line, whose values may come from the proxy or an engine."""
    return escape_controls(str(line))


def stage_log(started: float) -> Stage:
    """Return a function that logs stages as `worker.stage` events.

    Their field `seconds` counts from `started`, a reading of the monotonic clock.
    """
    log = structlog.get_logger()

    def stage(text: str) -> None:
        log.info("worker.stage", text=text, seconds=round(time.monotonic() - started, 1))

    return stage
