"""The table of rows. Each row names its load, its sides, what answers behind our proxy, and goals.

The load of each row is described in README.md.
"""

from dataclasses import replace
from typing import Any

from . import ours, queued
from .generator import one_load
from .model import Check, Comparison, Goal, Load, Row, Side, Unit
from .open_streams import open_streams
from .peers import LITELLM, NGINX, VLLM_ROUTER
from .queue_api import status, submits
from .real import real, sides
from .soak import soak

PUMP = "frame pump"
OUR_WORKER = "our worker"
CONTENT = (
    "Explain to a colleague how a queue of jobs survives the restart of its server, in three"
    " sentences, and name one thing that this does not protect against."
)
OURS = Side("ours", ours.with_pump())
PEERS = (OURS, NGINX, VLLM_ROUTER)
CPU = (Check("cpu_us", "nginx"), Check("cpu_us", "vllm-router"))


def _body(**fields: Any) -> dict[str, Any]:
    return {"model": "mock", "messages": [{"role": "user", "content": CONTENT}], **fields}


def _stream(events: int, gap_us: int) -> dict[str, Any]:
    return _body(stream=True, max_tokens=events, seed=gap_us)


def _whole_answers(connections: int, *, with_litellm: bool, rounds: int) -> Row:
    return Row(
        name="a" if connections == 64 else f"a{connections}",
        title=f"whole answers, {connections} connections",
        worker=PUMP,
        load=Load(connections=connections, seconds=3.0, body=_body(max_tokens=64)),
        sides=(*PEERS, LITELLM) if with_litellm else PEERS,
        measure=one_load,
        rounds=rounds,
        goals=(
            Goal("requests_per_second", 0.5, "nginx", is_minimum=True, stretch=0.85),
            Goal("requests_per_second", 3.0, "vllm-router", is_minimum=True, stretch=4.5),
            *(
                (Goal("requests_per_second", 200.0, "LiteLLM", is_minimum=True, stretch=400.0),)
                if with_litellm
                else ()
            ),
        ),
        checks=CPU,
    )


A = _whole_answers(64, with_litellm=True, rounds=5)
A256 = _whole_answers(256, with_litellm=False, rounds=5)

A_OPEN = Row(
    name="a-open",
    title="whole answers, 5,000 requests/s offered",
    worker=PUMP,
    load=Load(connections=256, seconds=4.0, rate=5_000.0, body=_body(max_tokens=64)),
    sides=PEERS,
    measure=one_load,
    goals=(
        Goal("requests_per_second", 4_950.0, kind=Comparison.ABSOLUTE, is_minimum=True),
        Goal("latency_p99_ms", 5.0, kind=Comparison.ABSOLUTE),
        Goal("cpu_us", 1.8, "nginx", stretch=1.4),
        Goal("cpu_us", 1.0, "vllm-router", stretch=0.8),
    ),
)

B = Row(
    name="b",
    title="64 streams of 128 events without a delay",
    worker=PUMP,
    load=Load(connections=64, seconds=3.0, is_stream=True, body=_stream(128, 0)),
    sides=PEERS,
    measure=one_load,
    unit=Unit.EVENT,
    goals=(
        Goal("events_per_second", 7.0, "vllm-router", is_minimum=True, stretch=10.0),
        Goal("events_per_second", 0.75, "nginx", is_minimum=True, stretch=1.0),
    ),
)

C = Row(
    name="c",
    title="500 streams of 50 events, an event every 20 ms",
    worker=PUMP,
    load=Load(
        connections=500, seconds=4.0, ramp_seconds=1.0, is_stream=True, body=_stream(50, 20_000)
    ),
    sides=PEERS,
    measure=one_load,
    unit=Unit.EVENT,
    goals=(
        Goal("cpu_us", 1.15, "nginx", stretch=1.0),
        Goal("cpu_us", 0.8, "vllm-router"),
        Goal("first_p99_ms", 2.0, "nginx", or_at_most=6.0, stretch=1.0),
        Goal("gap_p99_ms", 1.0, "nginx", kind=Comparison.DIFFERENCE),
    ),
    checks=(*CPU, Check("first_p99_ms", "nginx")),
)

TEN = Row(
    name="ten",
    title="10 streams of 50 events, an event every 20 ms",
    worker=PUMP,
    load=Load(
        connections=10, seconds=4.0, ramp_seconds=1.0, is_stream=True, body=_stream(50, 20_000)
    ),
    sides=PEERS,
    measure=one_load,
    unit=Unit.EVENT,
    goals=(Goal("first_p50_ms", 0.4, "nginx", kind=Comparison.DIFFERENCE, stretch=0.25),),
    checks=(Check("first_p50_ms", "nginx"),),
)

OPEN = Row(
    name="open",
    title="9,000 open streams, opened at 1,800/s",
    worker=PUMP,
    # An event every two seconds; the window is as long as the probes of `open_streams` take.
    load=Load(
        connections=9_000,
        seconds=10.0,
        warm_up_seconds=0.0,
        ramp_seconds=5.0,
        drain_seconds=0.0,
        is_stream=True,
        body=_stream(60, 2_000_000),
    ),
    sides=(OURS, NGINX),
    measure=open_streams,
    unit=Unit.EVENT,
    is_fresh=True,
    goals=(
        Goal("stream_kb", 12.0, kind=Comparison.ABSOLUTE, stretch=8.0),
        Goal("probe_p99_ms", 50.0, kind=Comparison.ABSOLUTE),
        Goal("idle_rss_mb", 60.0, kind=Comparison.ABSOLUTE),
        Goal("delay_ms", 50.0, kind=Comparison.ABSOLUTE),
    ),
)

UPSTREAM = Side("ours, our worker", ours.with_worker)
UPSTREAM_A = Row(
    name="upstream-a",
    title="whole answers, 64 connections, through our worker with --upstream",
    worker=OUR_WORKER,
    load=A.load,
    sides=(UPSTREAM, Side("ours, frame pump", ours.with_pump())),
    measure=one_load,
    goals=(
        Goal("cpu_us", 1.2, "ours, frame pump"),
        Goal("worker_cpu_us", 150.0, kind=Comparison.ABSOLUTE, stretch=100.0),
        Goal(
            "requests_per_second",
            4_000.0,
            kind=Comparison.ABSOLUTE,
            is_minimum=True,
            stretch=8_000.0,
        ),
    ),
)
UPSTREAM_C = Row(
    name="upstream-c",
    title="500 paced streams through our worker with --upstream",
    worker=OUR_WORKER,
    load=C.load,
    sides=UPSTREAM_A.sides,
    measure=one_load,
    unit=Unit.EVENT,
    goals=(
        Goal("cpu_us", 1.2, "ours, frame pump"),
        Goal("worker_cpu_us", 12.0, kind=Comparison.ABSOLUTE),
    ),
)

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

WORKERS = Row(
    name="workers",
    title="1, 8 and 32 workers, 1,500 requests/s offered",
    worker=PUMP,
    load=Load(connections=64, seconds=4.0, rate=1_500.0, body=_body(max_tokens=64)),
    sides=(
        Side("32 workers", ours.with_pump(32)),
        Side("8 workers", ours.with_pump(8)),
        Side("1 worker", ours.with_pump(1)),
    ),
    measure=one_load,
    goals=(Goal("cpu_us", 1.2, "1 worker", stretch=1.0),),
)

STOCK = Row(
    name="stock",
    title="8 jobs of workers with Runpod's SDK, each posting 100 chunks/s",
    worker="2 workers with Runpod's SDK",
    # The time of an event's way contains the SDK's.
    load=Load(
        connections=8, seconds=6.0, ramp_seconds=1.0, is_stream=True, body=_stream(200, 10_000)
    ),
    sides=(Side("ours", ours.with_runpod),),
    measure=one_load,
    unit=Unit.EVENT,
    goals=(
        Goal("cpu_us", 250.0, kind=Comparison.ABSOLUTE),
        Goal("transit_max_ms", 5.0, kind=Comparison.ABSOLUTE),
    ),
)

SOAK = Row(
    name="soak",
    title="10 minutes at 3,000 requests/s",
    worker=PUMP,
    load=Load(connections=64, seconds=600.0, rate=3_000.0, body=_body(max_tokens=64)),
    sides=(OURS,),
    measure=soak,
    rounds=1,
    goals=(
        Goal("growth_mb", 10.0, kind=Comparison.ABSOLUTE),
        Goal("lag_p999_ms", 20.0, kind=Comparison.ABSOLUTE),
    ),
)


def _real(name: str, title: str, *, is_pinned: bool, **load: Any) -> Row:
    state = "pinned to one CPU" if is_pinned else "not pinned"
    ratios = ("tokens_per_second", "first_per_second")
    return Row(
        name=f"{name}-{'pinned' if is_pinned else 'free'}",
        title=f"real vLLM on the CPU, {title}, engines {state}",
        worker="our worker with vLLM and the demo model",
        load=Load(**load),
        sides=sides(is_pinned=is_pinned),
        measure=real,
        rounds=10,
        goals=(
            *(
                Goal(figure, 1.0, "vLLM", is_minimum=True, is_by_interval=True, stretch=1.1)
                for figure in ratios
            ),
            Goal("api_cpu_ms_per_1000_tokens", 0.8, "vLLM"),
        ),
    )


def _tokens(number: int) -> dict[str, Any]:
    body = _body(stream=True, max_tokens=number, min_tokens=number, ignore_eos=True)
    return body | {"model": "demo"}


REAL = tuple(
    _real(name, title, is_pinned=is_pinned, is_stream=True, connections=64, **load)
    for is_pinned in (True, False)
    for name, title, load in (
        ("real", "64 streams of 128 tokens", {"requests": 128, "body": _tokens(128)}),
        ("real-short", "64 clients, 16 tokens", {"requests": 1_000, "body": _tokens(16)}),
    )
)

ROWS = (
    *(A, C, TEN, B, A_OPEN, A256, OPEN, RUN, UPSTREAM_A, UPSTREAM_C),
    *(STATUS, RUNSYNC, WORKERS, STOCK, *REAL, SOAK, RUN_MILLION),
)
# Without LiteLLM, whose start takes too long.
QUICK = (replace(A, sides=PEERS), C, TEN)
