"""A damaged database: a killed proxy finds it before it serves, a stopped one in the background."""

import signal
from pathlib import Path

import aiohttp
import pytest
from harness.data.damage import damage_bodies, make_file
from harness.proxy.command import command
from harness.tools.waiting import until

pytestmark = pytest.mark.slow

EX_UNAVAILABLE = 69


async def test_the_file_of_a_stopped_proxy_is_checked_while_it_serves(tmp_path: Path) -> None:
    path = tmp_path / "jobs.db"
    await make_file(path)
    arguments = ("proxy", "--port", "0", "--data-dir", str(tmp_path))
    async with command(*arguments) as stopped:
        await stopped.says("listens on")
        assert await stopped.stop(signal.SIGTERM) == 0
    damage_bodies(path)
    async with command(*arguments, PROXY_DRAIN="2") as serving:
        url = (await serving.says(r"listens on (http://\S+?)\.?\s")).group(1)
        async with aiohttp.ClientSession(url) as http:
            assert not await is_gone(http)
            await until(lambda: is_gone(http), what="the damage is found")
        assert await serving.ends(20) == EX_UNAVAILABLE
    assert serving.text.count("event=store.gone ") == 1
    assert "the database is damaged" in serving.text
    async with command(*arguments) as again:
        assert await again.ends(20) == EX_UNAVAILABLE
    assert "is damaged" in again.text
    assert "listens on" not in again.text


async def test_the_file_of_a_killed_proxy_is_checked_before_it_serves(tmp_path: Path) -> None:
    path = tmp_path / "jobs.db"
    await make_file(path)
    arguments = ("proxy", "--port", "0", "--data-dir", str(tmp_path))
    async with command(*arguments) as killed:
        await killed.says("listens on")
        killed.process.kill()
        await killed.ends(20)
    damage_bodies(path)
    async with command(*arguments) as again:
        assert await again.ends(20) == EX_UNAVAILABLE
    assert "is damaged" in again.text
    assert "listens on" not in again.text


async def is_gone(http: aiohttp.ClientSession) -> bool:
    async with http.get("/readyz") as response:
        return response.status == 503 and await response.json() == {"status": "store gone"}
