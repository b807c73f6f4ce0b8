"""A small fake of Runpod's platform, as its stock SDK sees it: hands out jobs, takes chunks and results, stops jobs."""

import asyncio
import json
from collections import defaultdict
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from aiohttp import web

from harness.waiting import until

HOLD_SECONDS = 2.0  # a real one holds its polls for 20-25 s; a worker that stops waits for the open ones
WORKER = "pod1"


@dataclass
class Plane:
    """What the platform knows."""

    url: str = ""
    waiting: asyncio.Queue[dict[str, Any]] = field(default_factory=asyncio.Queue)
    stops: asyncio.Queue[str] = field(default_factory=asyncio.Queue)
    chunks: defaultdict[str, list[Any]] = field(default_factory=lambda: defaultdict(list))
    results: dict[str, dict[str, Any]] = field(default_factory=dict)
    taken: list[str] = field(default_factory=list)
    pings: list[str] = field(default_factory=list)
    takes_chunks: asyncio.Event = field(default_factory=asyncio.Event)  # cleared: chunks are not acknowledged

    def submit(self, job: str, value: Any) -> None:
        """Put a job into the queue."""
        self.waiting.put_nowait({"id": job, "input": value})

    async def result(self, job: str, seconds: float = 20.0) -> dict[str, Any]:
        """What the worker said at the end of a job."""
        await until(lambda: job in self.results, seconds, f"the result of {job}")
        return self.results[job]

    def environment(self) -> dict[str, str]:
        """What the platform tells a worker."""
        base = f"{self.url}/v2/ep1"
        return {
            "RUNPOD_WEBHOOK_GET_JOB": f"{base}/job-take/$ID?gpu=none",
            "RUNPOD_WEBHOOK_POST_OUTPUT": f"{base}/job-done/$RUNPOD_POD_ID/$ID?gpu=none",
            "RUNPOD_WEBHOOK_POST_STREAM": f"{base}/job-stream/$RUNPOD_POD_ID/$ID?gpu=none",
            "RUNPOD_WEBHOOK_PING": f"{base}/ping/$RUNPOD_POD_ID",
            "RUNPOD_PING_INTERVAL": "1000",
            "RUNPOD_AI_API_KEY": "secret",
            "RUNPOD_POD_ID": WORKER,
            "RUNPOD_SKIP_AUTO_SYSTEM_CHECKS": "true",
            "RUNPOD_SKIP_GPU_CHECK": "true",
        }

    async def take(self, _: web.Request) -> web.Response:
        try:
            job = await asyncio.wait_for(self.waiting.get(), HOLD_SECONDS)
        except TimeoutError:
            return web.Response(status=204)
        self.taken.append(job["id"])
        return web.json_response(job)

    async def take_batch(self, request: web.Request) -> web.Response:
        try:
            jobs = [await asyncio.wait_for(self.waiting.get(), HOLD_SECONDS)]
        except TimeoutError:
            return web.Response(status=204)
        while len(jobs) < int(request.query["batch_size"]) and not self.waiting.empty():
            jobs.append(self.waiting.get_nowait())
        self.taken += [job["id"] for job in jobs]
        return web.json_response(jobs)

    async def stop(self, _: web.Request) -> web.Response:
        try:
            return web.json_response({"jobsToStop": [await asyncio.wait_for(self.stops.get(), HOLD_SECONDS)]})
        except TimeoutError:
            return web.Response(status=204)

    async def stream(self, request: web.Request) -> web.Response:
        self.chunks[request.match_info["job"]].append(json.loads(await request.text())["output"])
        await self.takes_chunks.wait()
        return web.Response()

    async def done(self, request: web.Request) -> web.Response:
        self.results[request.match_info["job"]] = json.loads(await request.text())
        return web.Response()

    async def ping(self, request: web.Request) -> web.Response:
        self.pings.append(request.query.get("job_id", ""))
        return web.Response()


@asynccontextmanager
async def plane() -> AsyncIterator[Plane]:
    """A platform on a free port."""
    running = Plane()
    running.takes_chunks.set()
    app = web.Application(client_max_size=64 * 1024 * 1024)
    base = "/v2/ep1"
    app.add_routes(
        [
            web.get(f"{base}/job-take/{WORKER}", running.take),
            web.get(f"{base}/job-take-batch/{WORKER}", running.take_batch),
            web.get(f"{base}/job-stop/{WORKER}", running.stop),
            web.get(f"{base}/ping/{WORKER}", running.ping),
            web.post(f"{base}/job-stream/{WORKER}/{{job}}", running.stream),
            web.post(f"{base}/job-done/{WORKER}/{{job}}", running.done),
        ]
    )
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    running.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
    try:
        yield running
    finally:
        await runner.cleanup()
