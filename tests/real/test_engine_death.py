"""vLLM's engine process is killed: its streams end with an error, and the worker exits."""

import asyncio
import json
import os
import signal
from pathlib import Path

import pytest
from harness.proxy.server import CHAT, Proxy, serving
from harness.worker.real_vllm import START_SECONDS, ask, cpus_of, engine_of, real_worker

pytestmark = pytest.mark.timeout(START_SECONDS)


async def test_a_dead_engine_ends_its_streams_and_its_worker(tmp_path: Path) -> None:
    """The engine has no pinning (`WORKER_CPU_PINNING`), because this test is the shortest one."""
    async with (
        serving(queue_timeout=20.0) as proxy,
        real_worker(proxy, tmp_path, cpu_pinning="off") as one,
    ):
        assert cpus_of(engine_of(one.process.pid)) == os.sched_getaffinity(0)
        request = ask("Count to one hundred.", stream=True, max_tokens=1_900, ignore_eos=True)
        async with proxy.http.post(CHAT, json=request) as response:
            seen = await response.content.readuntil(b'"content":"')
            waiting = asyncio.create_task(
                _post(proxy, ask("Count to one hundred.", max_tokens=1_900, ignore_eos=True))
            )
            os.kill(engine_of(one.process.pid), signal.SIGKILL)
            events = [event for event in (seen + await response.read()).split(b"\n\n") if event]
        assert events[-1] == b"data: [DONE]"
        assert json.loads(events[-2].removeprefix(b"data: "))["error"]["code"] == "engine_dead"
        assert sum(b'"error"' in event for event in events) == 1
        # Python needs seconds to unload torch.
        assert await asyncio.wait_for(one.process.wait(), 120) == 70
        # The client had not received any output, so the job waited for another worker.
        status, code = await waiting
        assert (status, code) == (502, "worker_lost")


async def _post(proxy: Proxy, request: dict[str, object]) -> tuple[int, str]:
    async with proxy.http.post(CHAT, json=request) as response:
        return response.status, (await response.json())["error"]["code"]
