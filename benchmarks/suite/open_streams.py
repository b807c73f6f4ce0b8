"""The measurement of many open streams: memory of each, and delays while they are opened."""

import asyncio
from typing import Any

from .generator import generate
from .model import Figures, Load, Rig, Row, RunningSide
from .processes import tree_mb

# Streams whose events show whether the opening of others delays them.
RUNNING_STREAMS = 50
RUNNING_GAP_MS = 20.0
RUNNING_EVENTS = 100
# New requests while all streams are open.
PROBES_PER_SECOND = 100.0
PROBE_SECONDS = 5.0
SETTLE_SECONDS = 1.0
# Time after the opening until the probes begin: streams that wait to be opened would delay them.
BACKLOG_SECONDS = 4.0


async def open_streams(rig: Rig, target: RunningSide, row: Row) -> Figures:
    """Open the streams of the row's load, and probe the server meanwhile and afterwards."""
    server = target.pids["server"]
    idle_mb = tree_mb(server)
    messages = (row.load.body or {})["messages"]
    running = asyncio.create_task(generate(rig, target, _running(row.load, messages)))
    await asyncio.sleep(SETTLE_SECONDS)
    opening = asyncio.create_task(generate(rig, target, row.load))
    delays = await running
    await asyncio.sleep(BACKLOG_SECONDS)
    open_mb = tree_mb(server)
    probes = await generate(rig, target, _probes(messages))
    opened = await opening
    return {
        "idle_rss_mb": idle_mb,
        "rss_mb": open_mb,
        "stream_kb": (open_mb - idle_mb) * 1000 / row.load.connections,
        "delay_ms": max(0.0, delays["gap"]["max"] - RUNNING_GAP_MS),
        "probe_p50_ms": probes["lat"]["p50"],
        "probe_p99_ms": probes["lat"]["p99"],
        "cpu": probes["watched"][0]["cpu_s"] / probes["window_s"],
        "cpu_us": opened["watched"][0]["cpu_s"] * 1e6 / opened["events"],
        "errors": sum(_failed(each) for each in (delays, probes, opened)),
    }


def _running(opening: Load, messages: Any) -> Load:
    """Return the load of the running streams, whose window is the time of the opening."""
    return Load(
        connections=RUNNING_STREAMS,
        seconds=opening.ramp_seconds,
        body={
            "model": "mock",
            "messages": messages,
            "stream": True,
            "max_tokens": RUNNING_EVENTS,
            "seed": int(RUNNING_GAP_MS * 1000),
        },
        is_stream=True,
        warm_up_seconds=SETTLE_SECONDS,
        drain_seconds=0.0,
    )


def _probes(messages: Any) -> Load:
    return Load(
        connections=16,
        seconds=PROBE_SECONDS,
        body={"model": "mock", "messages": messages, "max_tokens": 64},
        rate=PROBES_PER_SECOND,
    )


def _failed(result: dict[str, Any]) -> float:
    return float(sum(count for kind, count in result["errors"].items() if kind != "last_status"))
