"""The table of rows. Each row names its load, its sides, what answers behind our proxy, and goals.

The load of each row is described in README.md.
"""

from typing import Any

from . import ours
from .generator import one_load
from .model import Goal, Kind, Load, Row, Side, Unit
from .peers import LITELLM, NGINX, VLLM_ROUTER

PUMP = "frame pump"
OUR_WORKER = "our worker"
CONTENT = (
    "Explain to a colleague how a queue of jobs survives the restart of its server, in three"
    " sentences, and name one thing that this does not protect against."
)
OURS = Side("ours", ours.with_pump())
PEERS = (OURS, NGINX, VLLM_ROUTER)


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
            Goal("cpu_us", 2.0, "nginx", is_checked=True),
            Goal("cpu_us", 1.0, "vllm-router", is_checked=True),
        ),
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
        Goal("requests_per_second", 4_950.0, kind=Kind.ABSOLUTE, is_minimum=True),
        Goal("latency_p99_ms", 5.0, kind=Kind.ABSOLUTE),
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
        Goal("cpu_us", 1.15, "nginx", stretch=1.0, is_checked=True),
        Goal("cpu_us", 0.8, "vllm-router", is_checked=True),
        Goal("first_p99_ms", 2.0, "nginx", or_at_most=6.0, stretch=1.0, is_checked=True),
        Goal("gap_p99_ms", 1.0, "nginx", kind=Kind.DIFFERENCE),
    ),
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
    goals=(
        Goal("first_p50_ms", 0.4, "nginx", kind=Kind.DIFFERENCE, stretch=0.25),
        Goal("first_p50_ms", 3.0, "nginx", is_checked=True),
    ),
)

ROWS = (A, A256, A_OPEN, B, C, TEN)
QUICK = (A, C, TEN)
