"""The rows with a worker behind the proxy: ours, with an upstream or vLLM, and Runpod's SDK."""

from typing import Any

from . import ours
from .generator import one_load
from .loads import OUR_WORKER, body, stream
from .model import Comparison, Goal, Load, Row, Side, Unit
from .real import real, sides
from .rows_proxy import A, C

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

STOCK = Row(
    name="stock",
    title="8 jobs of workers with Runpod's SDK, each posting 100 chunks/s",
    worker="2 workers with Runpod's SDK",
    # The time of an event's way contains the SDK's.
    load=Load(
        connections=8, seconds=6.0, ramp_seconds=1.0, is_stream=True, body=stream(200, 10_000)
    ),
    sides=(Side("ours", ours.with_runpod),),
    measure=one_load,
    unit=Unit.EVENT,
    goals=(
        Goal("cpu_us", 250.0, kind=Comparison.ABSOLUTE),
        Goal("transit_max_ms", 5.0, kind=Comparison.ABSOLUTE),
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
        warm_up_rounds=1,
        goals=(
            *(
                Goal(figure, 1.0, "vLLM", is_minimum=True, is_by_interval=True, stretch=1.1)
                for figure in ratios
            ),
            Goal("api_cpu_ms_per_1000_tokens", 0.8, "vLLM"),
        ),
    )


def _tokens(number: int) -> dict[str, Any]:
    exact = body(stream=True, max_tokens=number, min_tokens=number, ignore_eos=True)
    return exact | {"model": "demo"}


REAL = tuple(
    _real(name, title, is_pinned=is_pinned, is_stream=True, connections=64, **load)
    for is_pinned in (True, False)
    for name, title, load in (
        ("real", "64 streams of 128 tokens", {"requests": 128, "body": _tokens(128)}),
        ("real-short", "64 clients, 16 tokens", {"requests": 1_000, "body": _tokens(16)}),
    )
)
