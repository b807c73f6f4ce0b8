"""CPU time per token of our worker and proxy, compared with vLLM's own server.

Only the API layer is measured, without the processes of the engine. vLLM's server and our worker
run the same API layer with the same model; the former has HTTP clients, the latter a WebSocket to
the proxy, which has HTTP clients. They take turns under the same load. The measure is the CPU time
of a process (`/proc/PID/stat`: all threads, no children), so other load has little effect. The
engine is paced (`paced.py`), so that both send one token per event; `tokens_per_event` reports
deviations. Prints a JSON line for each number of streams, and a table to stderr.

    .venv/bin/python benchmarks/worker_cpu.py [--rounds 7] [--streams 16 64]
"""

import argparse
import asyncio
import json
import os
import secrets
import statistics
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import aiohttp
import uvloop
from servers import MODEL, ROOT, VLLM, Running, free_port, here, server

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(ROOT))

# The import follows the change of the path, to use this repository and not an installed package.
from worker_vllm.engine.vllm import DEMO_FLAGS  # noqa: E402

TOKENS_PER_STREAM = 128

# The kernel reports CPU time in units of 10 ms; this number of tokens takes most of a second.
TOKENS_PER_ROUND = 8_192

FLAGS = [
    f"--{name.lower().replace('_', '-')}{'' if on == 'true' else f'={on}'}"
    for name, on in DEMO_FLAGS.items()
]
PACED = ("--scheduler-cls", "paced.PacedScheduler")
TICKS_PER_SECOND = os.sysconf("SC_CLK_TCK")
REQUEST: dict[str, Any] = {
    "model": "demo",
    "stream": True,
    "stream_options": {"include_usage": True},
    "min_tokens": TOKENS_PER_STREAM,
    "max_tokens": TOKENS_PER_STREAM,
    "ignore_eos": True,
    "messages": [{"role": "user", "content": "Count to one hundred."}],
}


@dataclass(frozen=True)
class Side:
    """A server to measure: the URL for clients, and the processes whose CPU time counts."""

    url: str
    pids: dict[str, int]


def cpu_seconds(pid: int) -> float:
    """Return the user and kernel CPU time of a process with all threads and without children."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / TICKS_PER_SECOND


def pin_engine(pid: int) -> None:
    """Pin the engine's processes to the first of two CPUs, as our worker does (decision 0007)."""
    cpus = sorted(os.sched_getaffinity(0))
    for child in _descendants(pid) if len(cpus) <= 2 else ():
        for task in Path(f"/proc/{child}/task").iterdir():
            os.sched_setaffinity(int(task.name), cpus[:1])


def _descendants(pid: int) -> Iterator[int]:
    for children in Path(f"/proc/{pid}/task").glob("*/children"):
        for child in children.read_text().split():
            yield int(child)
            yield from _descendants(int(child))


@asynccontextmanager
async def sides() -> AsyncIterator[dict[str, Side]]:
    """Start vLLM's server, and our proxy with a worker; yield both."""
    vllm_port = free_port()
    proxy_port = free_port()
    token = secrets.token_hex()
    url = f"http://127.0.0.1:{proxy_port}"
    variables = {"WORKER_CONNECT": url, "WORKER_TOKEN": token, "WORKER_MODEL": "demo"}
    async with AsyncExitStack() as stack:

        async def start(at: str, ready: str, *command: str, **environment: str) -> Running:
            paths = {"PYTHONPATH": str(HERE)} | environment
            return await stack.enter_async_context(
                server(at, ready, sys.executable, "-m", *command, **paths)
            )

        flags = ("--model", MODEL, "--port", str(vllm_port), *FLAGS, *PACED)
        vllm = await start(f"http://127.0.0.1:{vllm_port}", "/health", VLLM, *flags)
        pin_engine(vllm.pid)
        folder = stack.enter_context(TemporaryDirectory())
        serve = ("proxy.cli", "proxy", "--port", str(proxy_port), "--data-dir", folder)
        proxy = await start(url, "/livez", *serve, PROXY_WORKER_TOKEN=token)
        worker = await start(url, "/readyz", "worker_vllm", *PACED, **variables)
        yield {
            "vllm": Side(vllm.url, {"vllm": vllm.pid}),
            "ours": Side(url, {"worker": worker.pid, "proxy": proxy.pid}),
        }


async def stream(http: aiohttp.ClientSession, url: str) -> int:
    """Read one stream to its end; return the number of its events."""
    body = bytearray()
    async with http.post(f"{url}/v1/chat/completions", json=REQUEST) as response:
        async for piece in response.content.iter_any():
            body += piece
    if b'"completion_tokens":%d' % TOKENS_PER_STREAM not in body:
        raise RuntimeError(f"incomplete response: {bytes(body[-300:])!r}")
    return body.count(b"data: {")


async def one_round(side: Side, streams: int) -> dict[str, float]:
    """Return the CPU microseconds per token of each process, and the tokens per event."""
    before = {name: cpu_seconds(pid) for name, pid in side.pids.items()}
    events = 0
    waves = max(1, TOKENS_PER_ROUND // (streams * TOKENS_PER_STREAM))
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as http:
        for _ in range(waves):
            events += sum(await asyncio.gather(*(stream(http, side.url) for _ in range(streams))))
    tokens = waves * streams * TOKENS_PER_STREAM
    spent = {name: cpu_seconds(pid) - before[name] for name, pid in side.pids.items()}
    return {name: seconds / tokens * 1e6 for name, seconds in spent.items()} | {
        "tokens_per_event": tokens / events
    }


async def measure(rounds: int, loads: list[int]) -> None:
    """Measure both servers in turns, for each number of streams, and report the figures."""
    async with sides() as both:
        for streams in loads:
            taken: dict[str, list[dict[str, float]]] = {name: [] for name in both}
            for number in range(rounds + 1):
                for name, side in both.items():
                    result = await one_round(side, streams)
                    # The first round is a warm-up.
                    if number:
                        taken[name].append(result)
            report(streams, taken)


def report(streams: int, taken: dict[str, list[dict[str, float]]]) -> None:
    """Print a JSON line to stdout, and a table to stderr."""
    values = {
        name: [one[name] for one in taken[side]]
        for side, name in (("vllm", "vllm"), ("ours", "worker"), ("ours", "proxy"))
    }
    least = {name: min(found) for name, found in values.items()}
    middle = {name: statistics.median(found) for name, found in values.items()}
    figures = {
        "streams": streams,
        "rounds": len(taken["vllm"]),
        "cpu_us_per_token_min": {name: round(value, 1) for name, value in least.items()},
        "cpu_us_per_token_median": {name: round(value, 1) for name, value in middle.items()},
        "ratio_min": {name: round(value / least["vllm"], 2) for name, value in least.items()},
        "ratio_median": {name: round(value / middle["vllm"], 2) for name, value in middle.items()},
        "tokens_per_event": {
            side: round(statistics.median(one["tokens_per_event"] for one in rounds), 2)
            for side, rounds in taken.items()
        },
    }
    print(json.dumps(figures | here()), flush=True)
    print(f"{streams:4} streams, CPU µs per token     min            median", file=sys.stderr)
    for name in values:
        cells = "".join(
            f"{column[name]:9.1f} ({column[name] / column['vllm']:4.2f})"
            for column in (least, middle)
        )
        print(f"{name:>28} {cells}", file=sys.stderr)


def main() -> None:
    """Parse the arguments, and measure."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--streams", type=int, nargs="+", default=[16, 64])
    asked = parser.parse_args()
    uvloop.run(measure(asked.rounds, asked.streams))


if __name__ == "__main__":
    main()
