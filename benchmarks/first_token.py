"""Time to first token through the proxy, compared with vLLM's own server with the same model.

Both servers run on the same machine at the same time and take turns, so that other load affects
both equally. Prints one JSON line.

    .venv/bin/python benchmarks/first_token.py [--rounds 200]
"""

import argparse
import asyncio
import json
import statistics
import sys
import time
from typing import Any

import aiohttp
from servers import MODEL, VLLM, free_port, here, server

FLAGS = (
    "--served-model-name=demo",
    "--dtype=bfloat16",
    "--max-model-len=2048",
    "--enforce-eager",
    "--reasoning-parser=minimax_m3",
)
WARM_UP_REQUESTS = 10
REQUEST: dict[str, Any] = {
    "model": "demo",
    "stream": True,
    "max_tokens": 16,
    "messages": [{"role": "user", "content": "What is this?"}],
}


async def first_token(http: aiohttp.ClientSession, url: str) -> float:
    """Return the milliseconds from the request to the first event with text."""
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
    """Start both servers, and measure them in turns; return the figures."""
    vllm_port = free_port()
    our_port = free_port()
    vllm_command = (
        *(sys.executable, "-m", VLLM, "--model", MODEL, "--port", str(vllm_port)),
        *FLAGS,
    )
    our_command = (sys.executable, "-m", "proxy.cli", "up", "--port", str(our_port))
    taken: dict[str, list[float]] = {"vllm": [], "ours": []}
    async with (
        server(f"http://127.0.0.1:{vllm_port}", "/health", *vllm_command) as vllm,
        server(f"http://127.0.0.1:{our_port}", "/readyz", *our_command) as ours,
        aiohttp.ClientSession() as http,
    ):
        for _ in range(WARM_UP_REQUESTS):
            await first_token(http, vllm.url)
            await first_token(http, ours.url)
        for _ in range(rounds):
            taken["vllm"].append(await first_token(http, vllm.url))
            taken["ours"].append(await first_token(http, ours.url))
    middle = {name: round(statistics.median(values), 2) for name, values in taken.items()}
    late = {
        name: round(statistics.quantiles(values, n=100)[98], 2) for name, values in taken.items()
    }
    added = statistics.median(b - a for a, b in zip(taken["vllm"], taken["ours"], strict=True))
    return {
        "rounds": rounds,
        "p50_ms": middle,
        "p99_ms": late,
        "added_p50_ms": round(added, 2),
        "ratio_p50": round(middle["ours"] / middle["vllm"], 2),
        **here(),
    }


def main() -> None:
    """Parse the arguments, measure, and print the figures."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=200)
    print(json.dumps(asyncio.run(measure(parser.parse_args().rounds))))


if __name__ == "__main__":
    main()
