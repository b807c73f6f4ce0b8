"""The proxy and its worker as separate commands, as on two machines."""

import asyncio
import os
import signal
from asyncio.subprocess import DEVNULL
from pathlib import Path

import aiohttp
import pytest
from harness.proxy.command import command
from harness.proxy.server import CHAT, chat, serving
from harness.runpod.sdk_worker import HANDLERS
from harness.tools.environments import python
from harness.tools.waiting import until

pytestmark = pytest.mark.slow

KEY = "open-sesame"


async def test_a_remote_worker_joins_with_the_token(tmp_path: Path) -> None:
    flags = ("--port", "0", "--data-dir", str(tmp_path), "--endpoint", "mine")
    async with command("proxy", *flags, PROXY_API_KEY=f"team={KEY}") as proxy:
        url = (await proxy.says(r"listens on (http://\S+)\.")).group(1)
        async with command("token", "--data-dir", str(tmp_path)) as shown:
            await shown.process.wait()
        variables = {"WORKER_TOKEN": shown.text, "WORKER_ENGINE": "scripted"}
        async with (
            command(
                "worker",
                "--connect",
                url,
                "--endpoint",
                "mine",
                "--max-concurrency",
                "3",
                **variables,
            ) as worker,
            aiohttp.ClientSession(url, headers={"Authorization": f"Bearer {KEY}"}) as http,
        ):
            await worker.says("event=engine.ready .*slots=3")
            await until(lambda: _is_ready(http))
            async with http.post("/v2/mine/openai" + CHAT, json=chat("far")) as response:
                assert response.status == 200
            assert await worker.stop() == 0
        assert await proxy.stop() == 0
        assert KEY not in proxy.text
        assert variables["WORKER_TOKEN"] not in proxy.text + worker.text


async def test_a_worker_names_the_missing_setting(tmp_path: Path) -> None:
    async with command("worker") as worker:
        assert await worker.process.wait() == 2
        assert worker.text.count("\n") == 0
        assert "WORKER_CONNECT" in worker.text


async def test_a_runpod_worker_needs_only_the_variables_of_worker_env() -> None:
    async with serving(worker_token="hush") as proxy:
        flags = ("worker-env", "default", "--connect", proxy.url)
        variables = {"PROXY_WORKER_TOKEN": "hush"}
        async with (
            command(*flags, **variables) as shown,
            command(*flags, "--docker", **variables) as docker,
        ):
            assert (await shown.process.wait(), await docker.process.wait()) == (0, 0)
        assert all(line.startswith("export ") for line in shown.lines)
        assert all(line.startswith("-e ") for line in docker.lines)
        script = f'{shown.text}\nexec "$0" "$1"'
        asked = await asyncio.create_subprocess_exec(
            *("sh", "-c", script, python(".venv-sdk"), str(HANDLERS / "plain.py")),
            stdout=DEVNULL, stderr=DEVNULL, start_new_session=True,
        )  # fmt: skip
        try:
            await until(
                lambda: any(one.credit for one in proxy.parts.fleet), 60, "it asks for jobs"
            )
            async with proxy.http.post(
                "/v2/default/runsync", json={"input": {"value": 1}}
            ) as response:
                assert (await response.json())["output"]["echo"] == 1
        finally:
            os.killpg(asked.pid, signal.SIGKILL)
            await asked.wait()


async def _is_ready(http: aiohttp.ClientSession) -> bool:
    async with http.get("/readyz") as response:
        return response.status == 200
