"""A thousand clients that stop reading their streams, beside streams at full speed."""

import asyncio
import json
import socket
import time
from contextlib import ExitStack
from pathlib import Path

import aiohttp
import pytest
from harness.load.bystander import healthy
from harness.load.figures import tell
from harness.load.idle_streams import allow_descriptors
from harness.network.raw_http import json_request
from harness.proxy.process import KB, MB, Alone, alone
from harness.proxy.server import CHAT, chat, frames
from harness.tools.waiting import until
from harness.worker.process import environment, worker_process

from proxy.edge.protocol import WRITE_HIGH_WATERMARK_BYTES
from proxy.service.mailbox import STALL_SECONDS, WRITE_BYTES
from proxy.wire.frames import PART_BYTES, STREAM_WINDOW

TOKEN = "worker-token-of-this-story"
STALLED = 1_000
READING = 64
EVENTS = 128
SECONDS = 30.0
# A window and the last part that was sent into it; the write that waits, and what fits before it.
STREAM_MAX_BYTES = STREAM_WINDOW + PART_BYTES + WRITE_BYTES + WRITE_HIGH_WATERMARK_BYTES
# The proxy and the streams of the clients that read.
REST_MAX_BYTES = 64 * MB
# Each of these streams has 10 MB.
LONG = chat("z" * 2_000, max_tokens=5_000, stream=True)
SHORT = chat("token", max_tokens=EVENTS, stream=True)
DESCRIPTORS = 3_000


def stall(proxy: Alone) -> ExitStack:
    """Request long streams and read none of them."""
    host, port = proxy.url.removeprefix("http://").split(":")
    clients = ExitStack()
    for _ in range(STALLED):
        client = clients.enter_context(socket.socket())
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 16 * KB)
        client.connect((host, int(port)))
        client.sendall(json_request(LONG, CHAT))
    return clients


async def read_streams(http: aiohttp.ClientSession, until_time: float) -> int:
    """Request streams one after another; return the number of those that were complete."""
    complete = 0
    while time.monotonic() < until_time:
        async with http.post(CHAT, json=SHORT) as response:
            events = await frames(response)
        assert events[-1] == b"data: [DONE]", events[-1]
        assert len(events) > EVENTS
        complete += 1
    return complete


async def is_ready(http: aiohttp.ClientSession) -> bool:
    async with http.get("/readyz") as response:
        return response.status == 200


async def is_held(http: aiohttp.ClientSession, number: int) -> bool:
    """Return True if this number of jobs is running."""
    async with http.get("/health") as response:
        counts = json.loads(await response.read())["endpoints"]["default"]["jobs"]
    return bool(counts["inProgress"] == number)


@pytest.mark.torture
@pytest.mark.timeout(400)
async def test_a_thousand_stalled_streams_are_bounded_beside_streams_at_full_speed(
    tmp_path: Path,
) -> None:
    allow_descriptors(DESCRIPTORS)
    limits = {"limit": "openai=0", "worker_token": TOKEN, "log_level": "warning"}
    async with alone(tmp_path, **limits) as proxy:
        variables = environment(
            connect=proxy.url,
            token=TOKEN,
            id="w-1",
            max_concurrency=STALLED + READING,
            log_level="warning",
        )
        async with (
            worker_process(variables=variables, name="w-1"),
            aiohttp.ClientSession(proxy.url, connector=aiohttp.TCPConnector(limit=READING)) as http,
        ):
            await until(lambda: is_ready(http), 30.0, "the worker is ready")
            await read_streams(http, time.monotonic() + 1.0)
            before = proxy.memory()
            proxy.forget_most()
            clients = stall(proxy)
            with clients:
                async with healthy(proxy.url) as waits:
                    end = time.monotonic() + SECONDS
                    streams = await asyncio.gather(
                        *(read_streams(http, end) for _ in range(READING))
                    )
                held = proxy.most_memory() - before
                # A client that does not read keeps its run for a while.
                assert await is_held(http, STALLED)
                await until(
                    lambda: is_held(http, 0), STALL_SECONDS + 30.0, "stalled clients are cut"
                )
            await until(lambda: proxy.memory() - before <= REST_MAX_BYTES, 30.0, "memory is freed")
    goal = STALLED * STREAM_MAX_BYTES + REST_MAX_BYTES
    tell("1,000 stalled streams: memory at its most", held / MB, f"<= {goal // MB}", "MB")
    tell("streams beside them, events a second", sum(streams) * EVENTS / SECONDS, "", "1/s")
    tell("beside them, other clients, p99", waits.p99() * 1000, "", "ms")
    assert waits.statuses == {200}
    assert min(streams) > 0
    assert held <= goal
