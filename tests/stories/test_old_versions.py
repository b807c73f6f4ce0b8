"""A worker and a proxy of different versions work together: one is of this version, the other one
of commit a0f3c11.

The archive was made by `git archive --format=zip -9 -o tests/data/vllm_serverless-a0f3c11.zip
a0f3c11 ':(glob)proxy/**/*.py' ':(glob)worker_vllm/**/*.py'`.
"""

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from types import SimpleNamespace

import aiohttp
import pytest
from harness.network.cable import Cable, cable
from harness.proxy.command import command
from harness.proxy.queue_api import QueueClient, prompt, said
from harness.proxy.server import CHAT, chat
from harness.tools.ports import free_port
from harness.tools.waiting import until
from harness.worker.process import WorkerProcess, environment, worker_process

pytestmark = pytest.mark.slow

OLD = Path(__file__).parents[1] / "data" / "vllm_serverless-a0f3c11.zip"
OLD_CODE = {"PYTHONPATH": str(OLD), "PYTHONSAFEPATH": "1"}
TOKEN = "worker-token-of-this-story"
VERSIONS = [({}, OLD_CODE), (OLD_CODE, {})]


@asynccontextmanager
async def pair(
    folder: Path, proxy_code: dict[str, str], worker_code: dict[str, str]
) -> AsyncIterator[tuple[QueueClient, WorkerProcess, Cable]]:
    """Run a proxy and a worker; return a client, the worker and the cable between the two."""
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    flags = ("--port", str(port), "--data-dir", str(folder))
    variables = {"PROXY_WORKER_TOKEN": TOKEN, "PROXY_LEASE": "10"}
    async with command("proxy", *flags, **variables | proxy_code) as proxy:
        await proxy.says(f"listens on {url}")
        async with (
            cable(url) as line,
            aiohttp.ClientSession(url) as http,
            worker_process(
                variables=environment(
                    connect=line.url, token=TOKEN, id="w", environment=worker_code
                )
            ) as worker,
        ):
            client = QueueClient(SimpleNamespace(http=http))  # type: ignore[arg-type]
            await until(lambda: _is_ready(client), 20, "the worker is ready")
            yield client, worker, line


@pytest.mark.parametrize(("proxy_code", "worker_code"), VERSIONS, ids=["old worker", "old proxy"])
async def test_jobs_and_calls_are_answered(
    tmp_path: Path, proxy_code: dict[str, str], worker_code: dict[str, str]
) -> None:
    async with pair(tmp_path, proxy_code, worker_code) as (client, worker, line):
        job = await client.run(prompt("on", stream=True, max_tokens=40, seed=50_000))
        request = chat("on", stream=True, max_tokens=20, seed=100_000)
        async with client.proxy.http.post(CHAT, json=request) as response:
            seen = await response.content.readuntil(b"on 3 ")
            # No output is in flight between two tokens, so both runs continue.
            line.cut()
            events = [event for event in (seen + await response.read()).split(b"\n\n") if event]
        texts = [
            json.loads(event.removeprefix(b"data: "))["choices"][0]["delta"].get("content", "")
            for event in events[:-1]
        ]
        assert "".join(texts) == "".join(f"on {number} " for number in range(20))
        ended = await client.end(job)
        assert (ended["status"], ended["retries"]) == ("COMPLETED", 0)
        elements = (await client.stream(job, "?after=0"))["stream"]
        assert said(elements) == "".join(f"on {number} " for number in range(40))
        async with client.proxy.http.post(CHAT, json=chat("next")) as response:
            assert response.status == 200
        assert not [text for text in worker.lines if "Traceback" in text]


async def test_output_of_an_old_worker_that_is_lost_in_flight_is_not_repeated(
    tmp_path: Path,
) -> None:
    """Such a worker keeps no output, so the stream has a permanent gap."""
    async with pair(tmp_path, {}, OLD_CODE) as (client, worker, line):
        http = client.proxy.http
        request = chat("gap", stream=True, max_tokens=3_000, seed=1_000)
        async with http.post(CHAT, json=request) as response:
            seen = await response.content.readuntil(b"gap 5 ")
            line.block()
            made = await worker.metric(http, "generation_tokens_total")
            await until(lambda: _has_made(worker, http, made + 100))
            line.cut()
            line.flow()
            events = [event for event in (seen + await response.read()).split(b"\n\n") if event]
        assert json.loads(events[-2].removeprefix(b"data: "))["error"]["code"] == "worker_lost"


async def _has_made(worker: WorkerProcess, http: aiohttp.ClientSession, tokens: float) -> bool:
    return await worker.metric(http, "generation_tokens_total") >= tokens


async def _is_ready(client: QueueClient) -> bool:
    return bool((await client.call("GET", "health"))["workers"]["ready"])
