"""The rows of the proxy alone, beside its peers."""

from . import ours
from .generator import one_load
from .loads import PUMP, body, stream
from .model import Check, Comparison, Goal, Load, Row, Side, Unit
from .open_streams import open_streams
from .peers import LITELLM, NGINX, VLLM_ROUTER
from .soak import soak

OURS = Side("ours", ours.with_pump())
PEERS = (OURS, NGINX, VLLM_ROUTER)
CPU = (Check("cpu_us", "nginx"), Check("cpu_us", "vllm-router"))


def _whole_answers(connections: int, *, with_litellm: bool, rounds: int) -> Row:
    return Row(
        name="a" if connections == 64 else f"a{connections}",
        title=f"whole answers, {connections} connections",
        worker=PUMP,
        load=Load(connections=connections, seconds=3.0, body=body(max_tokens=64)),
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
    load=Load(connections=256, seconds=4.0, rate=5_000.0, body=body(max_tokens=64)),
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
    load=Load(connections=64, seconds=3.0, is_stream=True, body=stream(128, 0)),
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
        connections=500, seconds=4.0, ramp_seconds=1.0, is_stream=True, body=stream(50, 20_000)
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
        connections=10, seconds=4.0, ramp_seconds=1.0, is_stream=True, body=stream(50, 20_000)
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
        seconds=12.0,
        warm_up_seconds=0.0,
        ramp_seconds=5.0,
        drain_seconds=0.0,
        is_stream=True,
        body=stream(60, 2_000_000),
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

WORKERS = Row(
    name="workers",
    title="1, 8 and 32 workers, 1,500 requests/s offered",
    worker=PUMP,
    load=Load(connections=64, seconds=4.0, rate=1_500.0, body=body(max_tokens=64)),
    sides=(
        Side("32 workers", ours.with_pump(32)),
        Side("8 workers", ours.with_pump(8)),
        Side("1 worker", ours.with_pump(1)),
    ),
    measure=one_load,
    goals=(Goal("cpu_us", 1.2, "1 worker", stretch=1.0),),
)

SOAK = Row(
    name="soak",
    title="10 minutes at 3,000 requests/s",
    worker=PUMP,
    load=Load(connections=64, seconds=600.0, rate=3_000.0, body=body(max_tokens=64)),
    sides=(OURS,),
    measure=soak,
    rounds=1,
    goals=(
        Goal("growth_mb", 10.0, kind=Comparison.ABSOLUTE),
        Goal("lag_p999_ms", 20.0, kind=Comparison.ABSOLUTE),
    ),
)
