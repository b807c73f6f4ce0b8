"""Readers that stop reading use bounded memory, delay no other client, and leave nothing behind."""

import asyncio
import json
import socket
from contextlib import ExitStack
from io import BytesIO
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from harness.load.bystander import healthy
from harness.load.figures import tell
from harness.proxy.process import MB, Alone, alone
from harness.tools.waiting import until

from proxy.edge.memory import TRIM_SECONDS

OUTPUT_BYTES = 50 * MB
ELEMENT_BYTES = 50_000
# Output that waits for its readers, and the memory that the process uses besides.
GROWTH_MAX_BYTES = (256 + 64) * MB
# What may stay when the readers have left.
REST_MAX_BYTES = 64 * MB
# All readers are stalled if the proxy uses less than this part of a processor for one interval.
STALLED_SHARE = 0.1
STALL_SECONDS = 3.0
LEAVE_SECONDS = 30.0
RECEIVE_BUFFER_BYTES = 16 * 1024
TOKEN = "worker-token-of-this-story"
AUTHORIZED = {"Authorization": TOKEN}
SETTINGS = {"limit": "status=0 stream=0", "log_level": "warning", "worker_token": TOKEN}


async def submit(http: aiohttp.ClientSession, output: Any) -> str:
    """Submit a job and complete it as a Runpod worker; return its id."""
    async with http.post("/v2/default/run", json={"input": 1}) as response:
        job: str = (await response.json())["id"]
    path = "/v2/default/job-take/w-1?job_in_progress=0"
    async with http.get(path, headers=AUTHORIZED) as taken:
        assert (await taken.json())["id"] == job
    if isinstance(output, list):
        for value in output:
            path = f"/v2/default/job-stream/w-1/{job}"
            data = BytesIO(json.dumps({"output": value}).encode())
            async with http.post(path, headers=AUTHORIZED, data=data) as response:
                assert response.status == 200
    done = BytesIO(json.dumps({"output": output}).encode())
    async with http.post(f"/v2/default/job-done/w-1/{job}", headers=AUTHORIZED, data=done) as last:
        assert last.status == 200
    return job


def stall(url: str, path: str, accept: str, clients: int) -> ExitStack:
    """Send requests and read no response."""
    host, port = url.removeprefix("http://").split(":")
    request = f"GET {path} HTTP/1.1\r\nHost: localhost\r\nAccept: {accept}\r\n\r\n".encode()
    readers = ExitStack()
    for _ in range(clients):
        client = readers.enter_context(socket.socket())
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, RECEIVE_BUFFER_BYTES)
        client.connect((host, int(port)))
        client.sendall(request)
    return readers


async def stalled(proxy: Alone, name: str, path: str, accept: str, clients: int) -> None:
    """Measure the memory while clients stall, and after they have left."""
    before = proxy.memory()
    proxy.forget_most()
    async with healthy(proxy.url) as waits:
        with stall(proxy.url, path, accept, clients):
            used = float("-inf")
            while proxy.cpu_seconds() - used > STALLED_SHARE * STALL_SECONDS:
                used = proxy.cpu_seconds()
                await asyncio.sleep(STALL_SECONDS)
            # By then, memory that was used for a moment is returned to the system.
            await asyncio.sleep(TRIM_SECONDS + 1)
            held = proxy.memory() - before
    assert waits.statuses == {200}
    await until(
        lambda: proxy.memory() - before <= REST_MAX_BYTES, LEAVE_SECONDS, f"{name}: memory is freed"
    )
    peak = proxy.most_memory() - before
    tell(f"{name}: memory", round(held / MB, 1), f"<= {GROWTH_MAX_BYTES // MB}", "MB")
    tell(f"{name}: memory at its most", round(peak / MB, 1), "", "MB")
    tell(f"{name}: memory that stays", round((proxy.memory() - before) / MB, 1), "<= 64", "MB")
    tell(f"{name}: other clients, p99", round(waits.p99() * 1000, 1), "", "ms")
    assert held <= GROWTH_MAX_BYTES


@pytest.mark.torture
@pytest.mark.timeout(600)
async def test_readers_that_stall_use_bounded_memory(tmp_path: Path) -> None:
    async with alone(tmp_path, **SETTINGS) as proxy, aiohttp.ClientSession(proxy.url) as http:
        whole = await submit(http, "x" * OUTPUT_BYTES)
        pieces = ["x" * ELEMENT_BYTES] * (OUTPUT_BYTES // ELEMENT_BYTES)
        streamed = await submit(http, pieces)
        events = "text/event-stream"
        for name, path, accept, clients in (
            ("40 readers of `status`", f"status/{whole}", "*/*", 40),
            ("40 readers of `stream`", f"stream/{streamed}?after=0", "*/*", 40),
            ("40 readers of events", f"stream/{streamed}", events, 40),
            ("3,000 readers of events", f"stream/{streamed}", events, 3_000),
        ):
            await stalled(proxy, name, f"/v2/default/{path}", accept, clients)
