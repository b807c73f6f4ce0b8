"""The measurement of a long load: growth of memory, and the delay of small requests meanwhile."""

import asyncio
import statistics
from typing import Any

from .generator import figures, generate
from .mock import mock_upstream
from .model import Figures, Load, Rig, Row, RunningSide
from .processes import tree_mb

SAMPLE_SECONDS = 1.0
PROBES_PER_SECOND = 50.0
# The first and the last tenth of the time: of ten minutes, a minute each.
PART = 0.1


async def soak(rig: Rig, target: RunningSide, row: Row) -> Figures:
    """Measure the row's load once.

    Requests for `/livez` show for how long the event loop of the proxy is busy. The same requests
    go to an idle process, and show the delays that are caused by the machine.
    """
    probes = Load(
        connections=2,
        seconds=row.load.seconds,
        path="/livez",
        body=None,
        rate=PROBES_PER_SECOND,
        warm_up_seconds=row.load.warm_up_seconds,
    )
    async with mock_upstream(rig) as idle, asyncio.TaskGroup() as group:
        sampling = group.create_task(_memory(target.pids["server"], row.load.seconds))
        probing = group.create_task(generate(rig, target, probes))
        controlling = group.create_task(generate(rig, idle, probes))
        result = await generate(rig, target, row.load)
    return figures(result, target, row.unit) | {
        "growth_mb": growth(sampling.result()),
        **_lag("lag", probing.result()),
        **_lag("control_lag", controlling.result()),
    }


async def _memory(pid: int, seconds: float) -> list[float]:
    samples = []
    for _ in range(int(seconds / SAMPLE_SECONDS)):
        await asyncio.sleep(SAMPLE_SECONDS)
        samples.append(tree_mb(pid))
    return samples


def growth(samples: list[float]) -> float:
    """Return by how much the greatest value of the last part exceeds the end of the first part."""
    part = max(1, round(len(samples) * PART))
    return max(samples[-part:]) - statistics.median(samples[part - 1 : part + 2])


def _lag(name: str, result: dict[str, Any]) -> Figures:
    return {f"{name}_p999_ms": result["lat"]["p999"], f"{name}_max_ms": result["lat"]["max"]}
