"""The rows of the queue API."""

from typing import Any

from . import ours, queued
from .generator import one_load
from .loads import PUMP
from .model import Comparison, Goal, Load, Row, Side
from .queue_api import status, submits
from .rows_proxy import OURS

SUBMIT: dict[str, Any] = {"input": {"prompt": "x" * 980}}
EMPTY = Side("ours", ours.alone)
RUN = Row(
    name="run",
    title="durable `run`, 64 clients, bodies of 1 KB, SQLite with fsync",
    worker="none: the jobs stay queued",
    load=Load(connections=64, seconds=4.0, path="/v2/default/run", body=SUBMIT),
    sides=(EMPTY,),
    measure=submits,
    goals=(Goal("requests_per_second", 3_000.0, kind=Comparison.ABSOLUTE, is_minimum=True),),
)
RUN_MILLION = Row(
    name="run-million",
    title="durable `run`, 64 clients, with 1,000,000 queued jobs",
    worker=RUN.worker,
    load=RUN.load,
    sides=(Side("1,000,000 queued", ours.with_queue(queued.JOBS)), Side("empty", ours.alone)),
    measure=submits,
    is_optional=True,
    goals=(
        Goal("cpu_us", 1.2, "empty", stretch=1.0),
        # In MB, so that it is 400 bytes for each of a million jobs.
        Goal("idle_rss_mb", 400.0, "empty", kind=Comparison.DIFFERENCE, stretch=250.0),
        Goal("start_s", 8.0, kind=Comparison.ABSOLUTE),
    ),
)
RUNSYNC = Row(
    name="runsync",
    title="`runsync`, 64 clients",
    worker=PUMP,
    load=Load(connections=64, seconds=3.0, path="/v2/default/runsync", body=SUBMIT),
    sides=(OURS,),
    measure=one_load,
    goals=(Goal("requests_per_second", 3_000.0, kind=Comparison.ABSOLUTE, is_minimum=True),),
)
STATUS = Row(
    name="status",
    title="`status` of a completed job, 64 clients",
    worker=PUMP,
    load=Load(connections=64, seconds=3.0, path="/v2/default/status", body=None),
    sides=(OURS,),
    measure=status,
    goals=(Goal("requests_per_second", 6_000.0, kind=Comparison.ABSOLUTE, is_minimum=True),),
)
