"""`up` starts the proxy and workers, prints how to use them, and leaves no processes."""

import asyncio
import os
import re
import signal
from pathlib import Path
from uuid import uuid4

import aiohttp
import pytest
from harness.proxy.command import Command, command, processes
from harness.proxy.server import CHAT, chat
from harness.tools.waiting import until

pytestmark = pytest.mark.slow

SCRIPTED = {"WORKER_ENGINE": "scripted"}


async def base_url(running: Command) -> str:
    """Return the base URL that `up` prints."""
    found = await running.says(r"base URL\s+(http://\S+)/v1")
    return found.group(1)


async def test_up_serves_and_ctrl_c_leaves_no_processes(tmp_path: Path) -> None:
    mark = f"story-{uuid4()}"
    async with command(
        "up", "--port", "0", "--workers", "2", "--data-dir", str(tmp_path), **SCRIPTED, MARK=mark
    ) as up:
        url = await base_url(up)
        assert "starting the scripted engine" in up.text
        async with aiohttp.ClientSession(url) as http:
            async with http.get("/readyz") as response:
                assert response.status == 200
            async with http.post(CHAT, json=chat("up")) as response:
                assert response.status == 200
        assert len(processes(mark)) == 3
        assert await up.stop(signal.SIGINT) == 0
        await until(lambda: processes(mark) == [])
    assert sorted(path.name for path in (tmp_path / "logs").iterdir()) == [
        "worker-1.log",
        "worker-2.log",
    ]


async def test_up_reports_that_it_stops_its_worker(tmp_path: Path) -> None:
    named = {"WORKER_MODEL": "org/model"}
    async with command("up", "--port", "0", "--data-dir", str(tmp_path), **SCRIPTED | named) as up:
        await base_url(up)
        assert "demo model" not in up.text, "the variable names a model"
        assert "Stopping" not in up.text
        assert await up.stop(signal.SIGINT) == 0
    assert up.lines[-2].startswith("Shutting down: ")
    assert up.lines[-1] == "Stopping the worker: vLLM needs up to 10 s to exit."


async def test_a_second_ctrl_c_exits_at_once_and_quietly(tmp_path: Path) -> None:
    mark = f"story-{uuid4()}"
    place = ("--port", "0", "--data-dir", str(tmp_path))
    async with command("up", *place, **SCRIPTED, MARK=mark) as up:
        async with aiohttp.ClientSession(await base_url(up)) as http:
            # A call that does not end keeps the proxy in its shutdown.
            call = asyncio.create_task(http.post(CHAT, json=chat("endless", fault="hang")))
            await until(lambda: is_in_flight(http))
            up.process.send_signal(signal.SIGINT)
            last = (await up.says(r"Shutting down: .* Press Ctrl-C again .*")).group()
            assert await up.stop(signal.SIGINT) == 130
            await asyncio.gather(call, return_exceptions=True)
        await until(lambda: processes(mark) == [])
    assert up.lines[-1] == last


async def is_in_flight(http: aiohttp.ClientSession) -> bool:
    """Return True if the proxy has a queued or running job."""
    async with http.get("/v2/default/health") as response:
        jobs = (await response.json())["jobs"]
    return bool(jobs["inQueue"] + jobs["inProgress"])


async def test_a_worker_that_dies_is_restarted(tmp_path: Path) -> None:
    mark = f"story-{uuid4()}"
    async with command(
        "up", "--port", "0", "--data-dir", str(tmp_path), **SCRIPTED, MARK=mark
    ) as up:
        url = await base_url(up)
        [victim] = [pid for pid in processes(mark) if pid != up.process.pid]
        os.kill(victim, signal.SIGKILL)
        async with (
            aiohttp.ClientSession(url) as http,
            http.post(CHAT, json=chat("again")) as response,
        ):
            assert response.status == 200
        assert await up.stop(signal.SIGTERM) == 0
        await until(lambda: processes(mark) == [])


async def test_a_worker_that_cannot_stop_a_job_is_restarted(tmp_path: Path) -> None:
    impatient = SCRIPTED | {"WORKER_MAX_CONCURRENCY": "1", "PROXY_STOP_GRACE": "0.5"}
    deaf = {
        "openai_route": "/v1/completions",
        "openai_input": {"prompt": "x", "stream": True, "fault": "deaf:1"},
    }
    async with command("up", "--port", "0", "--data-dir", str(tmp_path), **impatient) as up:
        async with aiohttp.ClientSession(await base_url(up)) as http:
            async with http.post("/v2/default/run", json={"input": deaf}) as response:
                job = (await response.json())["id"]

            async def has_output() -> bool:
                async with http.get(f"/v2/default/stream/{job}?after=0") as response:
                    return bool((await response.json())["stream"])

            await until(has_output, what="its first output")
            async with http.post(f"/v2/default/cancel/{job}") as response:
                assert (await response.json())["status"] == "CANCELLED"
            async with http.post(CHAT, json=chat("again")) as response:
                assert response.status == 200
        assert await up.stop(signal.SIGTERM) == 0


async def test_a_worker_that_cannot_start_is_explained(tmp_path: Path) -> None:
    wrong = {"WORKER_MAX_CONCURRENCY": "many"}
    async with command("up", "--port", "0", "--data-dir", str(tmp_path), **SCRIPTED | wrong) as up:
        await up.says("A worker could not start")
        await up.says("WORKER_MAX_CONCURRENCY is wrong|MAX_CONCURRENCY")
        assert await up.process.wait() == 2


async def test_a_port_in_use_is_reported_in_one_line(tmp_path: Path) -> None:
    async with command("proxy", "--port", "0", "--data-dir", str(tmp_path)) as first:
        port = (await first.says(r"http://127.0.0.1:(\d+)")).group(1)
        async with command("up", "--port", port, "--data-dir", str(tmp_path)) as second:
            assert await second.process.wait() == 78
            line = rf"vllm-serverless: cannot listen on .* port {port}: .* \(PROXY_HOST\)\."
            assert re.fullmatch(line, second.text)


async def test_a_store_in_use_is_reported_in_one_line(tmp_path: Path) -> None:
    async with command("proxy", "--port", "0", "--data-dir", str(tmp_path)) as first:
        await first.says("listens on")
        async with command("up", "--port", "0", "--data-dir", str(tmp_path), **SCRIPTED) as second:
            assert await second.process.wait() == 69
            in_use = (
                r"vllm-serverless: .*jobs\.db is in use by another proxy "
                rf"\(process {first.process.pid}\)\. .*--store\."
            )
            assert re.fullmatch(in_use, second.text)
        async with command(
            "proxy", "--port", "0", "--data-dir", str(tmp_path), "--store", "memory:"
        ) as third:
            await third.says("listens on")


async def test_a_damaged_store_is_reported_in_one_line_and_not_changed(tmp_path: Path) -> None:
    store = tmp_path / "mine.db"
    store.write_bytes(b"no database" * 1_000)
    async with command(
        "proxy", "--port", "0", "--data-dir", str(tmp_path), "--store", f"sqlite:///{store}"
    ) as proxy:
        assert await proxy.process.wait() == 69
        assert re.fullmatch(
            r"vllm-serverless: .*mine\.db is damaged \(file is not a database\).*", proxy.text
        )
    assert store.read_bytes() == b"no database" * 1_000


async def test_up_refuses_to_listen_publicly_without_a_key(tmp_path: Path) -> None:
    async with command("up", "--host", "0.0.0.0", "--data-dir", str(tmp_path)) as up:
        assert await up.process.wait() == 78
        assert up.text.count("\n") == 0
        assert "--api-key-file" in up.text


@pytest.mark.parametrize(
    ("flag", "value"), [("--endpoint", "a b"), ("--port", "99999"), ("--queue-timeout", "-1")]
)
async def test_a_wrong_flag_is_named(flag: str, value: str) -> None:
    async with command("proxy", flag, value) as proxy:
        assert await proxy.process.wait() == 2
        assert flag in proxy.text
        assert "Traceback" not in proxy.text


async def test_every_command_has_readable_help() -> None:
    for name in ("up", "proxy", "worker", "token"):
        async with command(name, "--help") as shown:
            assert await shown.process.wait() == 0
        assert "PROXY_" in shown.text or "WORKER_" in shown.text


async def test_the_token_is_printed_and_stays_the_same(tmp_path: Path) -> None:
    printed = []
    for _ in range(2):
        async with command("token", "--data-dir", str(tmp_path)) as shown:
            assert await shown.process.wait() == 0
        printed.append(shown.text)
    assert printed[0] == printed[1] == (tmp_path / "worker-token").read_text().strip()
