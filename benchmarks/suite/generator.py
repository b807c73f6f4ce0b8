"""The programs in C, and one run of the load generator."""

import asyncio
import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

from .model import Figures, Load, Rig, Row, RunningSide, Unit
from .processes import LOAD_CORE

NATIVE = Path(__file__).resolve().parents[1] / "native"
FLAGS = ("-O2", "-std=gnu11", "-Wall", "-Wextra")
# Time that a run may take beyond its load: the timeout of its last requests.
GRACE_SECONDS = 60.0


class LoadError(Exception):
    """The load generator failed, or no request was successful."""


def compile_programs(folder: Path) -> tuple[Path, Path]:
    """Compile the load generator and the mock upstream into a folder; return their paths."""
    compiler = shutil.which("cc")
    if compiler is None:
        sys.exit("A C compiler is needed to build the load generator: install gcc or clang.")
    programs = []
    for name in ("loadgen", "mock_upstream"):
        program = folder / name
        subprocess.run(
            [compiler, *FLAGS, "-o", str(program), str(NATIVE / f"{name}.c")], check=True
        )
        programs.append(program)
    return programs[0], programs[1]


async def generate(rig: Rig, target: RunningSide, load: Load) -> dict[str, Any]:
    """Run the load generator, and return its result. Raises LoadError if no request succeeds."""
    process = await asyncio.create_subprocess_exec(
        *("taskset", "-c", LOAD_CORE, str(rig.loadgen), *arguments(target, load)),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    limit = (
        load.warm_up_seconds + load.ramp_seconds + load.seconds + load.drain_seconds + GRACE_SECONDS
    )
    try:
        async with asyncio.timeout(limit):
            output, errors = await process.communicate()
    except BaseException:
        process.kill()
        await process.wait()
        raise
    if process.returncode:
        raise LoadError(f"loadgen ended with {process.returncode}: {errors.decode()}")
    result: dict[str, Any] = json.loads(output)
    if not result["ok"] and not result["events"]:
        raise LoadError(f"No request was successful: {result['errors']}")
    return result


def arguments(target: RunningSide, load: Load) -> list[str]:
    """Return the arguments of the load generator."""
    flags = {
        "--port": target.port,
        "--path": load.path,
        "--concurrency": load.connections,
        "--duration": load.seconds,
        "--warmup": load.warm_up_seconds,
        "--ramp-ms": load.ramp_seconds * 1000,
        "--rate": load.rate,
        "--drain": load.drain_seconds,
    }
    given = [part for flag, value in flags.items() for part in (flag, str(value))]
    if load.body is not None:
        given += ["--data", json.dumps(load.body)]
    if load.requests:
        given += ["--count", str(load.requests)]
    for header in target.headers:
        given += ["--header", header]
    for pid in target.pids.values():
        given += ["--watch-pid", str(pid)]
    return [*given, "--stream"] if load.is_stream else given


def figures(result: dict[str, Any], target: RunningSide, unit: Unit) -> Figures:
    """Return the figures of one run. Times are in the unit that ends the name.

    `cpu` is the load of the server's core, and `load_core` that of the other one: if it is near 1,
    the server was not the bottleneck.
    """
    units = result["events" if unit is Unit.EVENT else "ok"]
    failed = sum(count for kind, count in result["errors"].items() if kind != "last_status")
    found = {
        "requests_per_second": result["rps"],
        "events_per_second": result["events_per_s"],
        "latency_p50_ms": result["lat"]["p50"],
        "latency_p99_ms": result["lat"]["p99"],
        "latency_p999_ms": result["lat"]["p999"],
        "first_p50_ms": result["ttfb"]["p50"],
        "first_p99_ms": result["ttfb"]["p99"],
        "gap_p99_ms": result["gap"]["p99"],
        "gap_max_ms": result["gap"]["max"],
        "transit_p99_ms": result["transit"]["p99"],
        "transit_max_ms": result["transit"]["max"],
        "errors": failed + (not result["drained"]) * result["in_flight_at_end"],
        "load_core": result["self_cpu_s"] / result["window_s"],
    }
    for name, watched in zip(target.pids, result["watched"], strict=True):
        prefix = "" if name == "server" else f"{name}_"
        found[f"{prefix}cpu_us"] = watched["cpu_s"] * 1e6 / units if units else 0.0
        found[f"{prefix}cpu"] = watched["cpu_s"] / result["window_s"]
        found[f"{prefix}rss_mb"] = watched["rss_mb"]
        if name != "server":
            found["load_core"] += watched["cpu_s"] / result["window_s"]
    return found


async def one_load(rig: Rig, target: RunningSide, row: Row) -> Figures:
    """Measure the row's load once; the usual `measure` of a row."""
    return figures(await generate(rig, target, row.load), target, row.unit)
