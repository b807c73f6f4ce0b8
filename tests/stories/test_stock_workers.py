"""Unmodified Runpod workers serve the queue: their SDK connects to this proxy.

Clients see no difference.
"""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from functools import partial
from typing import Any

import pytest
import pytest_asyncio
from harness.proxy.server import Proxy
from harness.runpod.sdk_worker import SDKS, StockProcess, stock_proxy, stock_worker
from harness.tools.waiting import until

ENDPOINTS = ["plain", "wide", "generating", "aggregating"]


class Stock:
    """A proxy with one stock worker on each endpoint."""

    def __init__(self, proxy: Proxy, workers: dict[str, StockProcess]) -> None:
        self.proxy, self.workers = proxy, workers

    async def run(self, endpoint: str, value: Any, **more: Any) -> str:
        """Submit a job; return its id."""
        async with self.proxy.http.post(
            f"/v2/{endpoint}/run", json={"input": value} | more
        ) as response:
            assert response.status == 200, await response.text()
            return str((await response.json())["id"])

    async def end(self, endpoint: str, job: str) -> dict[str, Any]:
        """Wait for a job to finish; return its final status."""
        async with self.proxy.http.get(f"/v2/{endpoint}/status-sync/{job}?wait=30000") as response:
            found: dict[str, Any] = await response.json()
            return found

    async def ask(self, endpoint: str, value: Any, **more: Any) -> dict[str, Any]:
        """Submit a job and wait for it to finish."""
        return await self.end(endpoint, await self.run(endpoint, value, **more))

    async def status(self, endpoint: str, job: str) -> dict[str, Any]:
        """Return the current status of a job."""
        async with self.proxy.http.get(f"/v2/{endpoint}/status/{job}") as response:
            found: dict[str, Any] = await response.json()
            return found


@pytest_asyncio.fixture(scope="module", params=SDKS)
async def stock(request: pytest.FixtureRequest) -> AsyncIterator[Stock]:
    start = partial(stock_worker, sdk=request.param)
    async with AsyncExitStack() as stack:
        proxy = await stack.enter_async_context(stock_proxy(endpoint=ENDPOINTS))
        starting = {
            "plain": start(proxy, "plain.py", "plain"),
            "wide": start(proxy, "plain.py", "wide", CONCURRENCY="8"),
            "generating": start(proxy, "generating.py", "generating"),
            "aggregating": start(proxy, "generating.py", "aggregating", AGGREGATE="1"),
        }
        workers = await asyncio.gather(
            *(stack.enter_async_context(one) for one in starting.values())
        )
        yield Stock(proxy, dict(zip(starting, workers, strict=True)))


async def test_a_job_is_answered(stock: Stock) -> None:
    ended = await stock.ask("plain", {"value": {"text": "é", "number": 1.50}})
    assert ended["status"] == "COMPLETED"
    assert ended["output"]["echo"] == {"text": "é", "number": 1.5}
    assert ended["workerId"] == stock.workers["plain"].id
    assert ended["retries"] == 0


async def test_a_handlers_error_fails_the_job_and_is_a_string_for_the_client(stock: Stock) -> None:
    said = await stock.ask("plain", {"do": "fail", "error": "no luck"})
    assert (said["status"], said["error"], said["output"]) == ("FAILED", "no luck", {"done": 1})
    answered = await stock.ask("plain", {"do": "fail", "error": {"code": 5}})
    assert json.loads(answered["error"]) == {"code": 5}


async def test_an_exception_fails_the_job_with_the_message_of_the_sdk(stock: Stock) -> None:
    ended = await stock.ask("plain", {"do": "raise"})
    assert ended["status"] == "FAILED"
    assert json.loads(ended["error"])["error_message"] == "no such thing"


async def test_a_number_that_json_cannot_represent_is_null(stock: Stock) -> None:
    assert (await stock.ask("plain", {"do": "nan"}))["output"] == {"value": None, "text": "é"}


async def test_the_elements_of_a_generator_can_be_read_as_they_arrive(stock: Stock) -> None:
    job = await stock.run("generating", {"count": 3, "seconds": 0.3})
    seen: list[Any] = []
    while True:
        async with stock.proxy.http.get(f"/v2/generating/stream/{job}") as response:
            part = await response.json()
        seen += [one["output"] for one in part["stream"]]
        if part["status"] == "COMPLETED":
            break
    assert [one["number"] for one in seen] == [0, 1, 2]
    # The SDK posts an empty output without `return_aggregate_stream`.
    assert (await stock.end("generating", job))["output"] == []


async def test_an_aggregated_output_is_the_list_that_the_worker_posts(stock: Stock) -> None:
    ended = await stock.ask("aggregating", {"count": 2})
    assert ended["output"] == [{"number": 0, "text": "é"}, {"number": 1, "text": "é"}]


async def test_a_generator_that_fails_keeps_its_earlier_elements(stock: Stock) -> None:
    broken = await stock.ask("generating", {"count": 3, "raise_at": 1})
    assert broken["status"] == "FAILED"
    assert broken["error"].startswith("handler: no such thing")
    assert [one["number"] for one in broken["output"]] == [0]
    refused = await stock.ask("generating", {"count": 3, "fail_at": 1})
    assert refused["error"] == "{'message': 'bad', 'code': 400}"


async def test_a_cancelled_job_is_stopped_in_the_worker(stock: Stock) -> None:
    worker = stock.workers["plain"]
    job = await stock.run("plain", {"do": "wait", "seconds": 60})
    await worker.noted("began", job)
    async with stock.proxy.http.post(f"/v2/plain/cancel/{job}") as response:
        assert (await response.json())["status"] == "CANCELLED"
    await worker.noted("stopped", job, 5)
    assert (await stock.ask("plain", {}))["status"] == "COMPLETED"
    await until(
        lambda: not any(one.holds for one in stock.proxy.parts.fleet),
        what="nothing is held any more",
    )


async def test_a_job_that_exceeds_its_timeout_is_stopped_in_the_worker(stock: Stock) -> None:
    job = await stock.run("plain", {"do": "wait", "seconds": 60}, policy={"executionTimeout": 5000})
    await stock.workers["plain"].noted("stopped", job)
    assert (await stock.end("plain", job))["status"] == "TIMED_OUT"


async def test_a_result_that_is_not_json_is_never_posted_and_its_job_fails(
    stock: Stock,
) -> None:
    ended = await stock.ask("plain", {"do": "no json"})
    assert ended["status"] == "FAILED"
    assert "without a result" in ended["error"]


async def test_concurrent_jobs_are_limited_to_the_slots_of_the_worker(stock: Stock) -> None:
    worker = stock.workers["wide"]
    jobs = [await stock.run("wide", {"do": "wait", "seconds": 3}) for _ in range(9)]
    for job in jobs[:8]:
        await worker.noted("began", job)
    shown = await stock.status("wide", jobs[8])
    assert shown["reason"] == "Held by a limit: all 8 slots of 1 worker are taken."
    assert not any(worker.notes("ended", job) for job in jobs)
    for job in jobs:
        assert (await stock.end("wide", job))["output"] == "waited"


async def test_progress_is_shown_as_the_output_until_the_end(stock: Stock) -> None:
    job = await stock.run("plain", {"do": "progress", "progress": {"percent": 50}, "seconds": 2})

    async def says_so() -> bool:
        shown = await stock.status("plain", job)
        return bool(shown["status"] == "IN_PROGRESS" and shown.get("output") == {"percent": 50})

    await until(says_so, what="the progress is shown")
    assert (await stock.end("plain", job))["output"] == "waited"


async def test_progress_after_the_end_changes_nothing(stock: Stock) -> None:
    job = await stock.run("plain", {"do": "late progress", "seconds": 0.5})
    assert (await stock.end("plain", job))["output"] == "done"
    worker = stock.workers["plain"]
    await until(
        lambda: any(f"{job} | Progress Update Sent" in line for line in worker.lines),
        what="it was late",
    )
    shown = await stock.status("plain", job)
    assert (shown["status"], shown["output"]) == ("COMPLETED", "done")


async def test_a_worker_that_requests_a_refresh_continues_until_it_is_replaced(
    stock: Stock,
) -> None:
    first = await stock.ask("plain", {"do": "refresh"})
    again = await stock.ask("plain", {})
    assert first["output"]["pid"] == again["output"]["pid"]


async def test_the_worker_receives_the_bucket_of_the_client(stock: Stock) -> None:
    bucket = {
        "accessId": "a",
        "accessSecret": "s",
        "bucketName": "b",
        "endpointUrl": "https://example.com",
    }
    ended = await stock.ask("plain", {"do": "configuration"}, s3Config=bucket)
    assert ended["output"] == {"s3": bucket, "keys": ["id", "input", "s3Config"]}


async def test_health_counts_stock_workers(stock: Stock) -> None:
    async def is_idle() -> bool:
        async with stock.proxy.http.get("/v2/wide/health") as response:
            states = (await response.json())["workers"]
        return bool(
            states
            == {
                "idle": 1,
                "initializing": 0,
                "ready": 1,
                "running": 0,
                "throttled": 0,
                "unhealthy": 0,
            }
        )

    await until(is_idle, what="one idle worker")
