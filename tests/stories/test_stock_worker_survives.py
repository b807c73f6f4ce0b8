"""A stock worker continues its job when the proxy is restarted."""

from contextlib import AsyncExitStack
from pathlib import Path

import pytest
from harness.runpod.sdk_worker import SDKS_OF_TORTURE, stock_proxy, stock_worker
from harness.tools.waiting import until


@pytest.mark.parametrize("sdk", SDKS_OF_TORTURE)
async def test_a_job_that_runs_while_the_proxy_restarts_runs_once(tmp_path: Path, sdk: str) -> None:
    async with AsyncExitStack() as workers:
        async with stock_proxy(data_dir=tmp_path) as proxy:
            worker = await workers.enter_async_context(stock_worker(proxy, "plain.py", sdk=sdk))
            async with proxy.http.post(
                "/v2/default/run", json={"input": {"do": "wait", "seconds": 6}}
            ) as response:
                job = (await response.json())["id"]
            await worker.noted("began", job)
            port = int(proxy.url.rpartition(":")[2])
        async with stock_proxy(data_dir=tmp_path, port=port) as again:
            async with again.http.get(f"/v2/default/status-sync/{job}?wait=30000") as response:
                ended = await response.json()
            assert (ended["status"], ended["output"], ended["retries"]) == (
                "COMPLETED",
                "waited",
                0,
            )
            assert worker.notes("began", job) == 1
            await until(
                lambda: any(one.credit for one in again.parts.fleet), what="it takes jobs again"
            )
