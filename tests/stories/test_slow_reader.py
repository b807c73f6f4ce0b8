"""A client that stops reading slows down no other client, and its buffer is bounded."""

import asyncio
import json
import socket
import time
from typing import Any

import pytest
from harness.proxy.server import CHAT, Proxy, chat, frames
from harness.proxy.shared import Line
from harness.tools.waiting import until

from proxy.wire.flow import HIGH_WATERMARK_BYTES
from proxy.wire.frames import PART_BYTES, STREAM_WINDOW

# A window, and the last part that was sent into it.
LARGEST = STREAM_WINDOW + PART_BYTES

# Large enough that a stream has several megabytes.
BIG = "z" * 2_000
FAST: dict[str, Any] = {"max_tokens": 5_000, "stream": True}


# The worker stops at its window or at the high watermark, whichever it reaches first. Up to half of
# the window is not acknowledged yet, and the next chunk may be too large for the rest.
STANDING_BYTES = HIGH_WATERMARK_BYTES // 4


def standing_reader(proxy: Proxy) -> socket.socket:
    """Return a client that requests a long stream and then reads nothing."""
    host, port = proxy.url.removeprefix("http://").split(":")
    client = socket.socket()
    client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 16 * 1024)
    client.connect((host, int(port)))
    body = json.dumps(chat(BIG, **FAST)).encode()
    client.sendall(
        b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\n"
        b"Content-Type: application/json\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body)
    )
    client.setblocking(False)
    return client


async def others_go_on(line: Line, seconds: float) -> None:
    """Assert that other clients are served as usual while one client reads nothing."""
    end = time.monotonic() + seconds
    while True:
        # 50 ms each, so that the rate limit is not reached.
        quick = chat("quick", stream=True, max_tokens=20, seed=2_500)
        async with line.proxy.http.post(CHAT, json=quick) as response:
            assert (await frames(response))[-1] == b"data: [DONE]"
        [mailbox] = list(line.proxy.parts.interactive)
        assert mailbox.backlog <= LARGEST
        if time.monotonic() > end:
            return


async def hold(line: Line, seconds: float) -> None:
    """Let one client stop reading for `seconds`; then it continues and receives everything."""
    client = standing_reader(line.proxy)
    try:
        await until(
            lambda: any(
                mailbox.backlog > STANDING_BYTES for mailbox in line.proxy.parts.interactive
            )
        )
        await others_go_on(line, seconds)
        loop = asyncio.get_running_loop()
        received = bytearray()
        while not received.endswith(b"0\r\n\r\n"):
            received += await asyncio.wait_for(loop.sock_recv(client, 1 << 20), 20)
    finally:
        client.close()
    assert received.count(b"data: {") == 5_001
    assert b"data: [DONE]" in received


async def test_a_stalled_reader_slows_no_other_client_and_loses_nothing(line: Line) -> None:
    await hold(line, 1.0)


@pytest.mark.torture
@pytest.mark.timeout(120)
async def test_a_reader_that_stalls_for_half_a_minute_loses_nothing(line: Line) -> None:
    await hold(line, 30.0)


async def test_a_stalled_reader_that_disconnects_frees_its_slot(line: Line) -> None:
    client = standing_reader(line.proxy)
    await until(
        lambda: any(mailbox.backlog > STANDING_BYTES for mailbox in line.proxy.parts.interactive)
    )
    client.close()
    await until(lambda: len(line.proxy.parts.interactive) == 0, 2.0)
    await until(lambda: not any(worker.holds for worker in line.proxy.parts.fleet), 2.0)


@pytest.mark.torture
@pytest.mark.timeout(150)
async def test_a_reader_that_stalls_for_more_than_a_minute_is_disconnected(line: Line) -> None:
    client = standing_reader(line.proxy)
    try:
        await until(
            lambda: any(
                mailbox.backlog > STANDING_BYTES for mailbox in line.proxy.parts.interactive
            )
        )
        await until(lambda: len(line.proxy.parts.interactive) == 0, 75.0)
        await until(lambda: not any(worker.holds for worker in line.proxy.parts.fleet), 2.0)
    finally:
        client.close()
