"""The measurements of the queue API: submits, waiting submits, and reads of a job's status."""

import asyncio
from dataclasses import replace
from typing import Any

import aiohttp

from .generator import figures, generate
from .model import Figures, Rig, Row, RunningSide
from .processes import tree_mb

COMPLETED_SECONDS = 10.0
POLL_SECONDS = 0.02


async def submits(rig: Rig, target: RunningSide, row: Row) -> Figures:
    """Measure the row's load, and note memory and start of a server with a queue."""
    idle_mb = tree_mb(target.pids["server"])
    found = figures(await generate(rig, target, row.load), target, row.unit)
    return found | {"idle_rss_mb": idle_mb, "start_s": target.started_seconds}


async def status(rig: Rig, target: RunningSide, row: Row) -> Figures:
    """Run one job to its end, and measure how often its status can be read."""
    job = await _completed_job(target)
    load = replace(row.load, path=f"{row.load.path}/{job}")
    return figures(await generate(rig, target, load), target, row.unit)


async def _completed_job(target: RunningSide) -> str:
    headers = dict(line.split(": ", 1) for line in target.headers)
    url = f"http://127.0.0.1:{target.port}/v2/default"
    async with asyncio.timeout(COMPLETED_SECONDS), aiohttp.ClientSession(headers=headers) as http:
        async with http.post(f"{url}/run", json={"input": {"prompt": "Hello"}}) as response:
            job: dict[str, Any] = await response.json()
        while job["status"] != "COMPLETED":
            await asyncio.sleep(POLL_SECONDS)
            async with http.get(f"{url}/status/{job['id']}") as response:
                job = await response.json()
    return str(job["id"])
