"""Our proxy as a side of a comparison, with the frame pump or with our worker behind it."""

import asyncio
import secrets
import sys
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

from proxy.access.limits import LIMITS
from proxy.cli.stock_worker import environment as stock_environment

from . import queued
from .mock import mock_upstream
from .model import NotInstalledError, Opening, Rig, RunningSide
from .ports import free_port
from .processes import LOAD_CORE, SERVER_CORE, pinned, until_ready

PUMP = Path(__file__).resolve().parents[1] / "pump.py"
RUNPOD_HANDLER = PUMP.with_name("runpod_handler.py")
RUNPOD_WORKERS = 2
# Rows add to the queue until they end.
MAX_QUEUED = 10_000_000
PUMP_SLOTS = 12_000
WORKER_SLOTS = 2_000
# A start with a million jobs takes long.
READY_SECONDS = 120.0


@asynccontextmanager
async def proxy(
    rig: Rig, prepare: Callable[[Path], None] | None = None, cores: str = SERVER_CORE
) -> AsyncIterator[tuple[RunningSide, str, Path]]:
    """Run the proxy with all its features: an API key, raised limits, and a store on disk.

    `prepare` receives the empty data directory before the start. Yield the target, the worker
    token, and a folder for the logs of workers.
    """
    token = secrets.token_hex()
    key = secrets.token_hex()
    port = free_port()
    variables = {
        "PROXY_API_KEY": f"bench={key}",
        "PROXY_WORKER_TOKEN": token,
        "PROXY_LIMIT": " ".join(f"{name}=0" for name in LIMITS),
        "PROXY_MAX_QUEUED": str(MAX_QUEUED),
        "PROXY_LOG_LEVEL": "warning",
    }
    with TemporaryDirectory(dir=rig.folder, prefix="proxy-") as name:
        folder = Path(name)
        data = folder / "data"
        data.mkdir()
        if prepare is not None:
            # It may run an event loop of its own.
            await asyncio.to_thread(prepare, data)
        log = folder / "proxy.log"
        flags = ("--port", str(port), "--data-dir", str(data))
        command = (sys.executable, "-m", "proxy.cli", "proxy", *flags)
        async with pinned(cores, *command, log=log, environment=variables) as process:
            url = f"http://127.0.0.1:{port}/livez"
            began = time.monotonic()
            await until_ready(process, log, url, seconds=READY_SECONDS)
            headers = (f"Authorization: Bearer {key}",)
            started = time.monotonic() - began
            yield RunningSide(port, {"server": process.pid}, headers, started), token, folder


@asynccontextmanager
async def _with_pump(rig: Rig, connections: int) -> AsyncIterator[RunningSide]:
    async with proxy(rig) as (target, token, folder):
        url = f"ws://127.0.0.1:{target.port}/v2/default/worker"
        slots = ("--slots", str(PUMP_SLOTS), "--connections", str(connections))
        log = folder / "pump.log"
        command = (sys.executable, str(PUMP), url, token, *slots)
        async with pinned(LOAD_CORE, *command, log=log) as process:
            await until_ready(process, log, f"http://127.0.0.1:{target.port}/readyz")
            yield replace(target, pids={**target.pids, "pump": process.pid})


@asynccontextmanager
async def _with_worker(rig: Rig) -> AsyncIterator[RunningSide]:
    async with proxy(rig) as (target, token, folder), mock_upstream(rig) as upstream:
        variables = {
            "WORKER_CONNECT": f"http://127.0.0.1:{target.port}",
            "WORKER_TOKEN": token,
            "WORKER_UPSTREAM": f"http://127.0.0.1:{upstream.port}",
            "WORKER_MAX_CONCURRENCY": str(WORKER_SLOTS),
            "WORKER_LOG_LEVEL": "warning",
        }
        log = folder / "worker.log"
        command = (sys.executable, "-m", "worker_vllm")
        async with pinned(LOAD_CORE, *command, log=log, environment=variables) as process:
            await until_ready(process, log, f"http://127.0.0.1:{target.port}/readyz")
            pids = {**target.pids, "worker": process.pid, **upstream.pids}
            yield replace(target, pids=pids)


@asynccontextmanager
async def _with_runpod(rig: Rig) -> AsyncIterator[RunningSide]:
    python = rig.environments / ".venv-sdk" / "bin" / "python"
    if not python.exists():
        raise NotInstalledError("make bench")
    async with proxy(rig) as (target, token, folder), AsyncExitStack() as stack:
        url = f"http://127.0.0.1:{target.port}"
        log = folder / "runpod.log"
        workers = [
            await stack.enter_async_context(
                pinned(
                    LOAD_CORE,
                    str(python),
                    str(RUNPOD_HANDLER),
                    log=log,
                    environment=stock_environment(url, "default", token, f"pod-{number}"),
                )
            )
            for number in range(RUNPOD_WORKERS)
        ]
        headers = dict(line.split(": ", 1) for line in target.headers)
        body = {"model": "mock", "max_tokens": 1, "seed": 0, "stream": True, "messages": []}
        ready = f"{url}/v1/chat/completions"
        await until_ready(workers[0], log, ready, headers=headers, body=body)
        yield target


@asynccontextmanager
async def _alone(
    rig: Rig, prepare: Callable[[Path], None] | None = None
) -> AsyncIterator[RunningSide]:
    async with proxy(rig, prepare) as (target, _, _):
        yield target


def with_pump(connections: int = 1) -> Opening:
    """Return the opening of a proxy whose requests are answered by the frame pump."""
    return partial(_with_pump, connections=connections)


def with_queue(jobs: int) -> Opening:
    """Return the opening of a proxy without workers that starts with this many queued jobs."""
    return partial(_alone, prepare=partial(queued.fill, jobs=jobs))


with_worker: Opening = _with_worker
with_runpod: Opening = _with_runpod
alone: Opening = _alone
