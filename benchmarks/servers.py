"""Start and stop the server processes of the benchmarks."""

import asyncio
import os
import platform
import socket
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryFile
from typing import IO

import aiohttp

ROOT = Path(__file__).resolve().parents[1]
MODEL = str(ROOT / "worker_vllm" / "demo")
VLLM = "vllm.entrypoints.launchers.api_server.entry"
START_SECONDS = 300
ENGINE = {
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_CPU_OMP_THREADS_BIND": "0",
    "HF_HUB_OFFLINE": "1",
    "VLLM_NO_USAGE_STATS": "1",
}


@dataclass(frozen=True)
class Running:
    """A server that is ready."""

    url: str
    pid: int


def free_port() -> int:
    """Return a port that is currently unused."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@asynccontextmanager
async def server(url: str, ready: str, *command: str, **environment: str) -> AsyncIterator[Running]:
    """Run a command in a process group of its own, and wait until it is ready.

    It is ready when the path `ready` of `url` returns 200. For a worker this is the proxy's URL.
    """
    variables = os.environ | ENGINE | environment
    with TemporaryFile() as output:
        process = await asyncio.create_subprocess_exec(
            *command, cwd=ROOT, env=variables, stdout=output, stderr=output, start_new_session=True
        )
        try:
            async with asyncio.timeout(START_SECONDS), aiohttp.ClientSession() as http:
                while not await _answers(http, url + ready):
                    if process.returncode is not None:
                        raise RuntimeError(
                            f"{command} ended with {process.returncode}: {_tail(output)}"
                        )
                    await asyncio.sleep(0.2)
            yield Running(url, process.pid)
        finally:
            if process.returncode is None:
                process.terminate()
            await process.wait()


def _tail(output: IO[bytes]) -> str:
    output.seek(0)
    return output.read()[-4000:].decode(errors="replace")


async def _answers(http: aiohttp.ClientSession, url: str) -> bool:
    with suppress(aiohttp.ClientError):
        async with http.get(url) as response:
            return response.status == 200
    return False


def here() -> dict[str, str]:
    """Return the machine and the date of a measurement."""
    machine = f"{os.cpu_count()} CPUs, {platform.system()} {platform.release()}"
    return {"machine": machine, "date": time.strftime("%Y-%m-%d")}
