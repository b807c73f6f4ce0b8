"""`runsync` returns the ended job, or the current state of the job after the timeout."""

import asyncio
import re
from io import BytesIO
from pathlib import Path

import pytest
from harness.data.store_steps import sqlite_store
from harness.proxy.queue_api import QueueClient, long, prompt
from harness.proxy.recorded_store import recorded
from harness.proxy.server import serving
from harness.tools.waiting import until
from harness.worker.process import worker
from yarl import URL

from proxy.serving import drain

MB = 1024 * 1024


async def test_the_response_is_the_job(queue: QueueClient) -> None:
    answer = await queue.call("POST", "runsync", json={"input": prompt("hi")})
    assert answer.status == 200
    assert re.fullmatch(r"sync-[0-9a-f-]{36}-u1", answer["id"])
    assert answer["status"] == "COMPLETED"
    assert answer["output"]["text"] == ["hi 0 hi 1 hi 2 "]
    assert all(isinstance(answer[name], int) for name in ("delayTime", "executionTime", "retries"))


async def test_the_result_is_read_once(tmp_path: Path) -> None:
    calls, store = recorded(sqlite_store(tmp_path / "jobs.db"))
    async with serving(job_store=store) as proxy, worker(proxy):
        answer = await QueueClient(proxy).call("POST", "runsync", json={"input": prompt("hi")})
    assert answer["output"]["text"] == ["hi 0 hi 1 hi 2 "]
    assert len([call for call in calls.naming(answer["id"]) if call.startswith("result(")]) == 1


async def test_a_timeout_returns_the_current_state(queue: QueueClient, alone: QueueClient) -> None:
    waiting, running = await asyncio.gather(
        alone.call("POST", "runsync?wait=1000", json={"input": 1}),
        queue.call("POST", "runsync?wait=1000", json={"input": long()}),
    )
    assert (waiting.status, waiting["status"]) == (200, "IN_QUEUE")
    assert (running.status, running["status"]) == (200, "IN_PROGRESS")
    assert (await queue.call("POST", f"cancel/{running['id']}")).status == 200


@pytest.mark.parametrize("wait", ["", "?wait=", "?wait=60000", "?wait=300000"])
async def test_a_long_wait_ends_when_the_job_ends(queue: QueueClient, wait: str) -> None:
    assert (await queue.call("POST", f"runsync{wait}", json={"input": prompt()}))[
        "status"
    ] == "COMPLETED"


WRONG_WAITS = (
    *("29", "0", "1", "999", "300001", "99999999999999999999999", "60000.5", "1500.0", "1e5"),
    *("-60000", "%2B60000", "60_000", "60s", "%2060000", "nan", "%EF%BC%95000"),
)


async def test_a_wait_out_of_range_is_rejected_like_on_the_public_platform(
    alone: QueueClient,
) -> None:
    """A caller that means seconds must learn it. Other long polls bring the value into the range,
    since SDKs send the rest of their own timeout.
    """
    for wait in WRONG_WAITS:
        url = URL(f"{alone.proxy.url}/v2/default/runsync?wait={wait}", encoded=True)
        async with alone.proxy.http.post(url, json={"input": {"prompt": "x"}}) as response:
            assert response.status == 400, wait
            message = "wait is invalid; must be between 1000 and 300000"
            assert await response.json() == {"error": message}
    assert (await alone.call("GET", "health"))["jobs"]["inQueue"] == 0


async def test_a_failed_job_is_returned_with_200(queue: QueueClient) -> None:
    answer = await queue.call("POST", "runsync", json={"input": prompt(tempo=1)})
    assert (answer.status, answer["status"]) == (200, "FAILED")
    assert answer["error"] == "sampling_params.tempo: unknown"
    assert "output" not in answer.body


async def test_a_body_has_at_most_twenty_megabytes(alone: QueueClient) -> None:
    body = b'{"input": "' + b"x" * (20 * MB - 12) + b'"}'
    headers = {"Content-Type": "application/json"}
    assert (await alone.call("POST", "runsync", data=BytesIO(body), headers=headers)).status == 413
    assert (
        await alone.call(
            "POST", "runsync?wait=1000", data=BytesIO(body[:-3] + b'"}'), headers=headers
        )
    ).status == 200


async def test_a_job_continues_after_its_client_disconnects(queue: QueueClient) -> None:
    call = asyncio.create_task(
        queue.call("POST", "runsync", json={"input": prompt("left", max_tokens=40, seed=20_000)})
    )
    await until(lambda: _newest(queue, "IN_PROGRESS"), what="it runs")
    call.cancel()
    await until(lambda: _newest(queue, "COMPLETED"), what="it has ended")


async def _newest(queue: QueueClient, status: str) -> bool:
    newest = (await queue.call("GET", "requests?limit=1"))["requests"][0]
    return newest["id"].startswith("sync-") and newest["status"] == status


async def test_long_polls_return_the_current_state_at_shutdown() -> None:
    """The jobs stay in the store and continue after the next start."""
    async with serving() as proxy:
        queue = QueueClient(proxy)
        job = await queue.run("waits")
        asked = [
            queue.call("POST", "runsync", json={"input": "waits too"}),
            queue.call("GET", f"status-sync/{job}"),
            queue.call("GET", f"stream/{job}?wait=60000"),
            queue.call("GET", f"stream/{job}?wait=60000&after=0"),
        ]
        waiting = [asyncio.create_task(each) for each in asked]
        await until(lambda: len(proxy.parts.events) == len(waiting), 10, "all wait")
        await drain(proxy.parts)
        for answer in await asyncio.wait_for(asyncio.gather(*waiting), 10):
            assert (answer.status, answer["status"]) == (200, "IN_QUEUE")
