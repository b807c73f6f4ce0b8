"""Stock workers die, drain, block and become unhealthy.

Their pings come from another process and are not sufficient evidence that they live.
"""

import signal
from typing import Any

import pytest
from harness.proxy.command import family
from harness.proxy.server import Proxy, serving
from harness.runpod.sdk_worker import SDKS_OF_TORTURE, stock_proxy, stock_worker
from harness.tools.waiting import until


async def run(proxy: Proxy, value: Any, **more: Any) -> str:
    async with proxy.http.post("/v2/default/run", json={"input": value} | more) as response:
        return str((await response.json())["id"])


async def end(proxy: Proxy, job: str) -> dict[str, Any]:
    async with proxy.http.get(f"/v2/default/status-sync/{job}?wait=60000") as response:
        found: dict[str, Any] = await response.json()
        return found


async def unhealthy(proxy: Proxy) -> int:
    async with proxy.http.get("/v2/default/health") as response:
        return int((await response.json())["workers"]["unhealthy"])


@pytest.mark.parametrize("sdk", SDKS_OF_TORTURE)
async def test_a_killed_worker_is_declared_lost_although_its_pings_continue(sdk: str) -> None:
    async with stock_proxy() as proxy, stock_worker(proxy, "plain.py", sdk=sdk) as first:
        job = await run(proxy, {"do": "wait", "seconds": 60})
        await first.noted("began", job)
        async with stock_worker(proxy, "plain.py", sdk=sdk) as second:
            first.process.send_signal(signal.SIGKILL)
            await second.noted("began", job, 8)
            assert first.process.returncode == -signal.SIGKILL
            assert family([first.process.pid]), "its ping process lives on"
            async with proxy.http.get(f"/v2/default/status/{job}") as response:
                shown = await response.json()
            assert (shown["status"], shown["retries"], shown["workerId"]) == (
                "IN_PROGRESS",
                1,
                second.id,
            )


@pytest.mark.parametrize("sdk", SDKS_OF_TORTURE)
async def test_a_worker_that_reconnects_under_its_name_has_lost_its_job(sdk: str) -> None:
    async with stock_proxy(line_gap=60.0, ping_lease=60.0) as proxy:
        async with stock_worker(proxy, "plain.py", sdk=sdk, pod="pod-1") as first:
            job = await run(proxy, {"do": "wait", "seconds": 1})
            await first.noted("began", job)
        async with stock_worker(proxy, "plain.py", sdk=sdk, pod="pod-1"):
            ended = await end(proxy, job)
    assert (ended["output"], ended["retries"]) == ("waited", 1)


@pytest.mark.parametrize("sdk", SDKS_OF_TORTURE)
async def test_a_job_that_kills_its_workers_is_not_retried_forever(sdk: str) -> None:
    async with (
        stock_proxy() as proxy,
        stock_worker(proxy, "plain.py", sdk=sdk),
        stock_worker(proxy, "plain.py", sdk=sdk),
        stock_worker(proxy, "plain.py", sdk=sdk),
    ):
        ended = await end(proxy, await run(proxy, {"do": "die"}))
        assert ended["status"] == "FAILED"
        assert ended["error"].startswith("Given up after 3 runs were lost.")


@pytest.mark.parametrize("sdk", SDKS_OF_TORTURE)
async def test_a_handler_that_blocks_its_process_for_longer_than_the_lease_runs_once(
    sdk: str,
) -> None:
    async with stock_proxy(ping_lease=3.0, line_gap=1.0, poll_hold=1.0) as proxy:
        async with (
            stock_worker(proxy, "blocking.py", sdk=sdk) as worker,
            stock_worker(proxy, "blocking.py", sdk=sdk) as other,
        ):
            job = await run(proxy, {"seconds": 8})
            ended = await end(proxy, job)
            assert (ended["status"], ended["retries"]) == ("COMPLETED", 0)
            assert worker.notes("began", job) + other.notes("began", job) == 1


@pytest.mark.parametrize("sdk", SDKS_OF_TORTURE)
async def test_a_drained_worker_posts_its_last_job_and_exits(sdk: str) -> None:
    async with (
        stock_proxy(line_gap=1.0) as proxy,
        stock_worker(proxy, "plain.py", sdk=sdk) as worker,
    ):
        job = await run(proxy, {"do": "wait", "seconds": 4})
        await worker.noted("began", job)
        assert await worker.stop() == 0
        ended = await end(proxy, job)
        assert (ended["output"], ended["retries"]) == ("waited", 0)
        await until(lambda: len(list(proxy.parts.fleet)) == 0, what="it is gone")


@pytest.mark.parametrize("sdk", SDKS_OF_TORTURE)
async def test_a_worker_that_ends_after_each_job_ends_at_once(sdk: str) -> None:
    async with (
        stock_proxy(poll_hold=30.0) as proxy,
        stock_worker(proxy, "plain.py", sdk=sdk, REFRESH="1") as worker,
    ):
        ended = await end(proxy, await run(proxy, {}))
        assert ended["status"] == "COMPLETED"
        await until(lambda: worker.process.returncode == 0, 10, "its polls do not hold it")


@pytest.mark.parametrize("sdk", SDKS_OF_TORTURE)
async def test_a_worker_that_fails_its_checks_is_shown_as_unhealthy(sdk: str) -> None:
    sick = {"RUNPOD_SKIP_AUTO_SYSTEM_CHECKS": "false", "RUNPOD_MIN_MEMORY_GB": "1000000"}
    async with (
        stock_proxy() as proxy,
        stock_worker(proxy, "plain.py", sdk=sdk, pod="pod-1", wait=False, **sick) as worker,
    ):

        async def is_shown() -> bool:
            return await unhealthy(proxy) == 1

        await until(is_shown, 60, "one unhealthy worker")
        await until(lambda: worker.process.returncode == 1, what="it has ended")
        async with stock_worker(proxy, "plain.py", sdk=sdk, pod="pod-1"):
            assert await unhealthy(proxy) == 0


@pytest.mark.torture
@pytest.mark.timeout(300)
async def test_with_the_default_lease_a_killed_worker_is_replaced_within_35_seconds() -> None:
    async with serving() as proxy, stock_worker(proxy, "plain.py") as first:
        job = await run(proxy, {"do": "wait", "seconds": 1})
        await first.noted("began", job)
        first.process.send_signal(signal.SIGKILL)
        async with stock_worker(proxy, "plain.py") as second:
            await second.noted("began", job, 35)


@pytest.mark.torture
@pytest.mark.timeout(300)
async def test_with_the_default_lease_a_handler_may_block_for_two_minutes() -> None:
    async with (
        serving() as proxy,
        stock_worker(proxy, "blocking.py") as one,
        stock_worker(proxy, "blocking.py") as two,
    ):
        job = await run(proxy, {"seconds": 120})
        while (ended := await end(proxy, job))["status"] == "IN_PROGRESS":
            pass
        assert (ended["status"], ended["retries"]) == ("COMPLETED", 0)
        assert one.notes("began", job) + two.notes("began", job) == 1
