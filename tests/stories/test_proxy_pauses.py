"""A proxy that was stopped for a while, with its machine or alone, does not lose its workers."""

import asyncio
import json
import os
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import aiohttp
import pytest
from harness.proxy.process import Alone, alone
from harness.proxy.queue_api import QueueClient, prompt
from harness.proxy.server import CHAT, chat
from harness.runpod.sdk_worker import HANDLERS
from harness.tools.environments import python
from harness.tools.waiting import until
from harness.worker.process import WorkerProcess, environment, worker_process

from proxy.cli import stock_worker

pytestmark = pytest.mark.slow

TOKEN = "worker-token-of-this-story"
# Longer than the lease of these proxies, shorter than the ping timeout of a worker.
PAUSE_SECONDS = 3.0
PIECES = 60


@dataclass(frozen=True)
class Scene:
    """A proxy in a process of its own, one worker, and a client."""

    proxy: Alone
    worker: WorkerProcess
    http: aiohttp.ClientSession

    @property
    def queue(self) -> QueueClient:
        return QueueClient(SimpleNamespace(http=self.http))  # type: ignore[arg-type]

    async def pause(self, seconds: float) -> None:
        """Stop the process of the proxy, and let it continue after this time."""
        await pause(self.proxy.command.process.pid, seconds)

    def starts(self) -> int:
        """Return the number of runs that the worker has started."""
        return sum("event=job.started" in line for line in self.worker.lines)


async def pause(pid: int, seconds: float) -> None:
    """Stop a process, and let it continue after this time."""
    os.kill(pid, signal.SIGSTOP)
    try:
        await asyncio.sleep(seconds)
    finally:
        os.kill(pid, signal.SIGCONT)


@asynccontextmanager
async def scene(
    folder: Path, worker: dict[str, Any] | None = None, **settings: Any
) -> AsyncIterator[Scene]:
    async with alone(folder, worker_token=TOKEN, **settings) as proxy:
        variables = environment(connect=proxy.url, token=TOKEN, id="w-1", **(worker or {}))
        async with (
            worker_process(variables=variables, name="w-1") as one,
            aiohttp.ClientSession(proxy.url) as http,
        ):
            made = Scene(proxy, one, http)
            await until(lambda: _is_ready(made.queue), 30, "the worker is ready")
            yield made


async def test_a_stopped_proxy_keeps_the_runs_of_its_workers(tmp_path: Path) -> None:
    async with scene(tmp_path, lease=1.0) as one:
        await _survives(one, PAUSE_SECONDS, gap=0.1)


@pytest.mark.torture
@pytest.mark.timeout(240)
@pytest.mark.parametrize(
    ("seconds", "gap", "pieces"),
    [(20.0, 0.5, 60), (20.0, 0.01, 3_000), (20.0, 0.001, 30_000), (40.0, 1.0, 60)],
    ids=["slow", "usual", "fast", "long"],
)
async def test_a_proxy_that_was_stopped_for_a_long_time_keeps_all_runs(
    tmp_path: Path, seconds: float, gap: float, pieces: int
) -> None:
    """After 40 seconds, the worker has closed its connection and dials again."""
    async with scene(tmp_path, {"heartbeat_seconds": 5}) as one:
        await _survives(one, seconds, gap=gap, pieces=pieces)


async def _survives(one: Scene, seconds: float, *, gap: float, pieces: int = PIECES) -> None:
    """Pause while a stream and a durable job run, whose pieces have this distance in seconds."""
    micros = int(gap * 1_000_000)
    job = await one.queue.run(prompt("job", stream=True, max_tokens=pieces, seed=micros))
    request = chat("on", stream=True, max_tokens=pieces, seed=micros)
    async with one.http.post(CHAT, json=request) as response:
        seen = await response.content.readuntil(b"on 1 ")
        await one.pause(seconds)
        lines = (seen + await response.read()).splitlines()
    # Without the comments that keep a silent stream alive.
    events = [line for line in lines if line.startswith(b"data: ")]
    assert events[-1] == b"data: [DONE]", events[-3:]
    assert _text(events) == "".join(f"on {number} " for number in range(pieces))
    ended = await one.queue.end(job)
    assert (ended["status"], ended["retries"]) == ("COMPLETED", 0)
    assert one.starts() == 2
    await one.proxy.command.says("loop.paused")
    assert "worker.gone" not in one.proxy.command.text


async def test_a_worker_that_died_during_a_pause_is_lost_one_lease_later(tmp_path: Path) -> None:
    async with scene(tmp_path, lease=1.0) as one:
        call = chat("off", stream=True, max_tokens=PIECES, seed=100_000)
        async with one.http.post(CHAT, json=call) as response:
            await response.content.readuntil(b"off 1 ")
            pausing = asyncio.create_task(one.pause(PAUSE_SECONDS))
            await asyncio.sleep(0)
            one.worker.kill()
            await pausing
            assert b"worker_lost" in await asyncio.wait_for(response.read(), 10)


async def test_a_stopped_proxy_keeps_the_run_of_a_runpod_worker(tmp_path: Path) -> None:
    """The pause is longer than the time without pings after which such a worker is lost."""
    settings = {"poll_hold": 2.0, "ping_lease": 3.0, "line_gap": 1.0}
    async with (
        alone(tmp_path, worker_token=TOKEN, **settings) as proxy,
        aiohttp.ClientSession(proxy.url) as http,
    ):
        queue = QueueClient(SimpleNamespace(http=http))  # type: ignore[arg-type]
        variables = stock_worker.environment(proxy.url, "default", TOKEN, "pod-1", ping_millis=1000)
        command = (python(".venv-sdk"), str(HANDLERS / "plain.py"))
        process = await asyncio.create_subprocess_exec(
            *command, cwd=HANDLERS, env=os.environ | variables, start_new_session=True
        )
        try:
            job = await queue.run({"do": "wait", "seconds": 8})
            await until(lambda: _is(queue, job, "IN_PROGRESS"), 60, "the job runs")
            await pause(proxy.command.process.pid, 5.0)
            ended = await queue.end(job)
        finally:
            os.killpg(process.pid, signal.SIGKILL)
            await process.wait()
        assert (ended["status"], ended["retries"]) == ("COMPLETED", 0)
        assert "worker.gone" not in proxy.command.text


async def _is(queue: QueueClient, job: str, status: str) -> bool:
    return bool((await queue.status(job))["status"] == status)


def _text(events: list[bytes]) -> str:
    payloads = [event.removeprefix(b"data: ") for event in events if event.startswith(b"data: {")]
    errors = [payload for payload in payloads if payload.startswith(b'{"error"')]
    assert not errors
    deltas = [json.loads(payload)["choices"][0]["delta"] for payload in payloads]
    return "".join(delta.get("content", "") for delta in deltas)


async def _is_ready(queue: QueueClient) -> bool:
    return bool((await queue.call("GET", "health"))["workers"]["ready"])
