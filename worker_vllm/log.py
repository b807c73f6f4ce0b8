"""Logging: events with fields, as `key=value` lines on stderr. `stage` is the one that people wait for."""

import logging
import sys
import time
from collections.abc import Callable
from typing import Any

import structlog

from proxy.wire.escaping import escape_controls

Stage = Callable[[str], None]
"""Tell people what the worker is doing now, in a few words."""

_LEVELS = {
    "debug": logging.DEBUG,
    "info": logging.INFO,
    "warning": logging.WARNING,
    "error": logging.ERROR,
}


def configure_logging(level: str) -> None:
    """Send our events to stderr. Libraries keep the standard library's logging, from warnings up."""
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
    """Escape control characters in a rendered line: its values may come from the proxy or an engine."""
    return escape_controls(str(line))


def stage_log(started: float) -> Stage:
    """Stages as `worker.stage` events; `seconds` counts from `started` (monotonic)."""
    log = structlog.get_logger()

    def stage(text: str) -> None:
        log.info("worker.stage", text=text, seconds=round(time.monotonic() - started, 1))

    return stage
