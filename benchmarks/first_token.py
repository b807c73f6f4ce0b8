"""Time to the first token through the proxy, beside vLLM's own server on the same machine and model.

Both run at once and take turns, so that whatever the machine does hits both. Prints one JSON line.

    .venv/bin/python benchmarks/first_token.py [--rounds 200]
"""

import argparse
import asyncio
import json
import os
import platform
import socket
import statistics
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import aiohttp

ROOT = Path(__file__).resolve().parents[1]
START_SECONDS = 300
FLAGS = (
    *("--served-model-name", "demo", "--dtype", "bfloat16", "--max-model-len", "2048", "--enforce-eager"),
    *("--reasoning-parser", "minimax_m3"),
)
ENGINE = {
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_CPU_OMP_THREADS_BIND": "0",
    "HF_HUB_OFFLINE": "1",
    "VLLM_NO_USAGE_STATS": "1",
}
REQUEST: dict[str, Any] = {
    "model": "demo",
    "stream": True,
    "max_tokens": 16,
    "messages": [{"role": "user", "content": "What is this?"}],
}


def free_port() -> int:
    """A port that nobody has just now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@asynccontextmanager
async def server(port: int, ready: str, *command: str) -> AsyncIterator[str]:
    """A server of its own process group, from ready to ended."""
    quiet = asyncio.subprocess.DEVNULL
    process = await asyncio.create_subprocess_exec(
        *command, cwd=ROOT, env=os.environ | ENGINE, stdout=quiet, stderr=quiet, start_new_session=True
    )
    url = f"http://127.0.0.1:{port}"
    try:
        async with asyncio.timeout(START_SECONDS), aiohttp.ClientSession() as http:
            while not await _answers(http, url + ready):  # noqa: ASYNC110 - another process becomes ready
                await asyncio.sleep(0.2)
        yield url
    finally:
        process.terminate()
        await process.wait()


async def _answers(http: aiohttp.ClientSession, url: str) -> bool:
    with suppress(aiohttp.ClientError):
        async with http.get(url) as response:
            return response.status == 200
    return False


async def first_token(http: aiohttp.ClientSession, url: str) -> float:
    """Milliseconds from the request to the first event with text."""
    began = time.perf_counter()
    async with http.post(f"{url}/v1/chat/completions", json=REQUEST) as response:
        seen = b""
        async for piece in response.content.iter_any():
            seen += piece
            if b'"content":"' in seen.replace(b'"content":""', b""):
                took = (time.perf_counter() - began) * 1000
                await response.read()
                return took
    raise RuntimeError(seen)


async def measure(rounds: int) -> dict[str, Any]:
    """Both servers, taking turns."""
    plain, ours = free_port(), free_port()
    python = sys.executable
    entry = "vllm.entrypoints.launchers.api_server.entry"
    model = str(ROOT / "worker_vllm" / "demo")
    taken: dict[str, list[float]] = {"vllm": [], "ours": []}
    async with (
        server(plain, "/health", python, "-m", entry, "--model", model, "--port", str(plain), *FLAGS) as vllm_url,
        server(ours, "/readyz", python, "-m", "proxy.cli", "up", "--port", str(ours)) as our_url,
        aiohttp.ClientSession() as http,
    ):
        for _ in range(10):  # warm both
            await first_token(http, vllm_url)
            await first_token(http, our_url)
        for _ in range(rounds):
            taken["vllm"].append(await first_token(http, vllm_url))
            taken["ours"].append(await first_token(http, our_url))
    middle = {name: round(statistics.median(values), 2) for name, values in taken.items()}
    late = {name: round(statistics.quantiles(values, n=100)[98], 2) for name, values in taken.items()}
    added = statistics.median(b - a for a, b in zip(taken["vllm"], taken["ours"], strict=True))
    return {
        "rounds": rounds,
        "p50_ms": middle,
        "p99_ms": late,
        "added_p50_ms": round(added, 2),
        "ratio_p50": round(middle["ours"] / middle["vllm"], 2),
        "machine": f"{os.cpu_count()} CPUs, {platform.system()} {platform.release()}",
        "date": time.strftime("%Y-%m-%d"),
    }


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=200)
    print(json.dumps(asyncio.run(measure(parser.parse_args().rounds))))


if __name__ == "__main__":
    main()
