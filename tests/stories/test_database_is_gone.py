"""The database is deleted or replaced while the proxy runs: it takes no jobs, and exits with 69."""

import asyncio
import shutil
from collections.abc import Callable
from pathlib import Path

import aiohttp
import pytest
from harness.proxy.command import command
from harness.proxy.queue_api import body, prompt
from harness.proxy.server import CHAT, chat
from harness.tools.waiting import until

pytestmark = pytest.mark.slow

EX_UNAVAILABLE = 69


def delete(path: Path) -> None:
    path.unlink()


def replace(path: Path) -> None:
    shutil.copy(path, path.with_name("older.db"))
    path.with_name("older.db").replace(path)


def delete_folder(path: Path) -> None:
    shutil.rmtree(path.parent)


@pytest.mark.parametrize("lose", [delete, replace, delete_folder])
async def test_the_proxy_rejects_jobs_serves_calls_and_exits(
    tmp_path: Path, lose: Callable[[Path], None]
) -> None:
    folder = tmp_path / "data"
    more = {"WORKER_ENGINE": "scripted", "PROXY_DRAIN": "6"}
    async with command("up", "--port", "0", "--data-dir", str(folder), **more) as up:
        url = (await up.says(r"base URL\s+(http://\S+)/v1")).group(1)
        async with aiohttp.ClientSession(url) as http:
            job = await submit(http, max_tokens=20, seed=50_000)
            await until(lambda: is_running(http, job), what="the job runs")
            waiting = asyncio.create_task(answer(http, "GET", f"status-sync/{job}?wait=60000"))
            events = await http.get(
                f"/v2/default/stream/{job}", headers={"Accept": "text/event-stream"}
            )
            lose(folder / "jobs.db")
            status, refused = await answer(http, "POST", "run", input=prompt())
            assert status == 503
            assert "database is gone" in refused["error"]
            for operation in ("health", "requests", f"status/{job}"):
                assert (await answer(http, "GET", operation))[0] == 503
            assert (await waiting)[0] == 503
            # The client of the stream would connect again.
            assert b"event: end" not in await events.read()
            for path in ("/readyz", "/health"):
                async with http.get(path) as response:
                    assert response.status == 503
                    assert await response.json() == {"status": "store gone"}
            async with http.post(CHAT, json=chat("goes on")) as response:
                assert response.status == 200
        assert await asyncio.wait_for(up.process.wait(), 20) == EX_UNAVAILABLE
    assert up.text.count("event=store.gone ") == 1
    assert f"event=result.lost job={job}" in up.text
    assert "Traceback" not in up.text
    assert "The proxy exits, because it cannot keep jobs" in up.text


async def test_a_proxy_without_traffic_exits(tmp_path: Path) -> None:
    async with command("proxy", "--port", "0", "--data-dir", str(tmp_path), PROXY_DRAIN="0") as one:
        await one.says("listens on")
        (tmp_path / "jobs.db").unlink()
        assert await asyncio.wait_for(one.process.wait(), 20) == EX_UNAVAILABLE
    assert "jobs.db was deleted or moved" in one.text


async def submit(http: aiohttp.ClientSession, **params: int) -> str:
    _, found = await answer(http, "POST", "run", input=prompt(**params))
    return str(found["id"])


async def is_running(http: aiohttp.ClientSession, job: str) -> bool:
    _, found = await answer(http, "GET", f"status/{job}")
    return bool(found["status"] == "IN_PROGRESS")


async def answer(
    http: aiohttp.ClientSession, method: str, operation: str, **value: object
) -> tuple[int, dict[str, str]]:
    """Return the status and the body of a call of the queue API."""
    sent = body(value) if value else {}
    async with http.request(method, f"/v2/default/{operation}", **sent) as response:
        return response.status, await response.json()
