"""Workers as real processes, with the scripted engine."""

import asyncio
import os
import re
import signal
import sys
from asyncio.subprocess import PIPE, STDOUT, Process
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp

from harness.proxy.command import family
from harness.proxy.server import Proxy
from harness.tools.waiting import until

ROOT = Path(__file__).parents[3]
STOP_SECONDS = 20.0
_METRICS = re.compile(r"event=metrics\.listening url=(\S+)")


@dataclass
class WorkerProcess:
    """A worker in a process of its own."""

    process: Process
    id: str
    lines: list[str] = field(default_factory=list)

    def find(self, pattern: re.Pattern[str]) -> str | None:
        """Return the first group of the first output line that matches."""
        return next(
            (found.group(1) for line in self.lines if (found := pattern.search(line))), None
        )

    async def metric(self, http: aiohttp.ClientSession, name: str) -> float:
        """Return a metric of the engine, read from the worker's loopback port."""
        url = self.find(_METRICS)
        assert url is not None, self.lines
        async with http.get(url) as response:
            text = await response.text()
        rows = re.findall(rf"^vllm:{name}(?:{{.*}})? ([0-9.e+]+)$", text, re.MULTILINE)
        return sum(float(row) for row in rows)

    def kill(self) -> None:
        """Kill the worker and all its processes immediately."""
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)


def environment(**more: Any) -> dict[str, str]:
    """Return the environment of a worker; `more` are `WORKER_*` variables in lower case."""
    variables = {
        "engine": "scripted",
        "metrics_port": 0,
        "log_level": "debug",
        # The leases of the stories are short.
        "heartbeat_seconds": 0.25,
        # A test that leaves a long job running does not wait for it.
        "drain_seconds": 1,
    } | more
    own = variables.pop("environment", {})
    return {
        **os.environ,
        **own,
        **{f"WORKER_{name.upper()}": str(value) for name, value in variables.items()},
    }


@asynccontextmanager
async def worker_process(
    *flags: str, variables: dict[str, str], name: str = "", python: str = sys.executable
) -> AsyncIterator[WorkerProcess]:
    """Run `python -m worker_vllm`, and stop it when the context ends."""
    process = await asyncio.create_subprocess_exec(
        *(python, "-m", "worker_vllm", *flags),
        cwd=ROOT, env=variables, stdout=PIPE, stderr=STDOUT, start_new_session=True,
    )  # fmt: skip
    running = WorkerProcess(process, name)
    reading = asyncio.create_task(_read(running))
    try:
        yield running
    finally:
        if variables.get("WORKER_ENGINE") == "vllm":
            _kill_vllm(process.pid)
            await until(
                lambda: family([process.pid]) == [], STOP_SECONDS, "none of its processes is left"
            )
        elif process.returncode is None:
            process.send_signal(signal.SIGTERM)
        try:
            await asyncio.wait_for(process.wait(), STOP_SECONDS)
        except TimeoutError:
            running.kill()
            await process.wait()
        running.kill()
        await reading


def _kill_vllm(leader: int) -> None:
    """Kill the processes of a worker, because an orderly shutdown of vLLM takes 5 to 15 seconds.

    The orderly shutdown is tested with `make up`. Python's resource tracker is not killed: it
    removes their shared memory and then exits.
    """
    for pid in family([leader]):
        with suppress(OSError):
            if b"resource_tracker" not in Path(f"/proc/{pid}/cmdline").read_bytes():
                os.kill(pid, signal.SIGKILL)


@asynccontextmanager
async def worker(
    proxy: Proxy, *flags: str, url: str = "", wait: bool = True, **more: Any
) -> AsyncIterator[WorkerProcess]:
    """Run a worker of this proxy that is ready to serve."""
    name = more.pop("id", f"w-{os.urandom(4).hex()}")
    variables = environment(
        **{"connect": url or proxy.url, "token": proxy.parts.token, "id": name} | more
    )
    async with worker_process(*flags, variables=variables, name=name) as running:
        if wait:
            await until(lambda: _is_ready(proxy, running), 240, f"worker {name} is ready")
        yield running


def _is_ready(proxy: Proxy, running: WorkerProcess) -> bool:
    assert running.process.returncode is None, "\n".join(running.lines)
    return any(one.id == running.id and one.is_ready for one in proxy.parts.fleet)


async def _read(running: WorkerProcess) -> None:
    assert running.process.stdout is not None
    async for line in running.process.stdout:
        running.lines.append(line.decode(errors="replace").rstrip())
