"""The proxy and its worker started apart, as on two machines."""

from pathlib import Path

import aiohttp
from harness.command import command
from harness.proxy import CHAT, chat
from harness.waiting import until

KEY = "open-sesame"


async def test_a_worker_elsewhere_joins_with_the_token(tmp_path: Path) -> None:
    flags = ("--port", "0", "--data-dir", str(tmp_path), "--api-key", f"team={KEY}", "--endpoint", "mine")
    async with command("proxy", *flags) as proxy:
        url = (await proxy.says(r"listens on (http://\S+)\.")).group(1)
        async with command("token", "--data-dir", str(tmp_path)) as shown:
            await shown.process.wait()
        told = {"WORKER_TOKEN": shown.text, "WORKER_ENGINE": "scripted"}
        async with (
            command("worker", "--connect", url, "--endpoint", "mine", "--max-concurrency", "3", **told) as worker,
            aiohttp.ClientSession(url, headers={"Authorization": f"Bearer {KEY}"}) as http,
        ):
            await worker.says("event=engine.ready .*slots=3")
            await until(lambda: _is_ready(http))
            async with http.post("/v2/mine/openai" + CHAT, json=chat("far")) as response:
                assert response.status == 200
            assert await worker.stop() == 0
        assert await proxy.stop() == 0
        assert KEY not in proxy.text
        assert told["WORKER_TOKEN"] not in proxy.text + worker.text


async def test_a_worker_without_its_settings_says_which(tmp_path: Path) -> None:
    async with command("worker") as worker:
        assert await worker.process.wait() == 2
        assert worker.text.count("\n") == 0
        assert "WORKER_CONNECT" in worker.text


async def _is_ready(http: aiohttp.ClientSession) -> bool:
    async with http.get("/readyz") as response:
        return response.status == 200
