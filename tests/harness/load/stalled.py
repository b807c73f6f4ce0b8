"""Clients that send a request and do not read its response, and the jobs whose output they want."""

import asyncio
import json
import socket
from collections.abc import Iterator
from contextlib import ExitStack
from io import BytesIO
from typing import Any, NamedTuple

import aiohttp

from harness.proxy.process import MB, Alone

TOKEN = "worker-token-of-this-story"
AUTHORIZED = {"Authorization": TOKEN}
OUTPUT_BYTES = 50 * MB
ELEMENT_BYTES = 50_000
RECEIVE_BUFFER_BYTES = 16 * 1024
# All clients are stalled if the proxy uses less than this part of a processor for one interval.
STALLED_SHARE = 0.1
STALL_SECONDS = 3.0


class Stalled(NamedTuple):
    """A number of clients that request the same output."""

    name: str
    path: str
    accept: str
    clients: int


async def loads(http: aiohttp.ClientSession) -> Iterator[Stalled]:
    """Store an output of 50 MB as one value and as a stream; return the loads in turn."""
    whole = await submit(http, "x" * OUTPUT_BYTES)
    pieces = ["x" * ELEMENT_BYTES] * (OUTPUT_BYTES // ELEMENT_BYTES)
    streamed = await submit(http, pieces)
    events = "text/event-stream"
    return iter((
        Stalled("40 readers of `status`", f"/v2/default/status/{whole}", "*/*", 40),
        Stalled("40 readers of `stream`", f"/v2/default/stream/{streamed}?after=0", "*/*", 40),
        Stalled("40 readers of events", f"/v2/default/stream/{streamed}", events, 40),
        Stalled("3,000 readers of events", f"/v2/default/stream/{streamed}", events, 3_000),
    ))  # fmt: skip


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


def stall(url: str, load: Stalled) -> ExitStack:
    """Send the requests, and read no response while the context lasts."""
    host, port = url.removeprefix("http://").split(":")
    head = f"GET {load.path} HTTP/1.1\r\nHost: localhost\r\nAccept: {load.accept}\r\n\r\n"
    readers = ExitStack()
    for _ in range(load.clients):
        client = readers.enter_context(socket.socket())
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, RECEIVE_BUFFER_BYTES)
        client.connect((host, int(port)))
        client.sendall(head.encode())
    return readers


async def until_stalled(proxy: Alone) -> None:
    """Wait until the proxy has written as much as it can."""
    used = float("-inf")
    while proxy.cpu_seconds() - used > STALLED_SHARE * STALL_SECONDS:
        used = proxy.cpu_seconds()
        await asyncio.sleep(STALL_SECONDS)
