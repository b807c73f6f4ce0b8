"""Unauthenticated callers can neither flood the log nor inject terminal escapes through it."""

import asyncio
import re
import time
from pathlib import Path

import aiohttp
import pytest
from harness.load.figures import tell
from harness.proxy.command import command

pytestmark = pytest.mark.slow

# Number of refused worker calls that are answered late; further ones are answered at once.
SLOW = 64
# Connections in addition to those that wait for a late answer.
FAST = 32
ENOUGH = 5_000
ATTACK = "%1b%5d0;owned%07%c2%9b2J%e2%80%ae%0d%0atime=x"
FIELDS = "Host: 127.0.0.1\r\n"
UPGRADE = f"{FIELDS}Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n"
HANDSHAKE = f"{UPGRADE}Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n"
KINDS = {
    "a worker's call": f"GET /v2/default/job-take/{ATTACK} HTTP/1.1\r\n{FIELDS}",
    "a long path": f"GET /v2/default/job-take/{'%f0%9f%98%80' * 500} HTTP/1.1\r\n{FIELDS}",
    "the wrong method": f"PUT /v2/default/job-take/{ATTACK} HTTP/1.1\r\n{FIELDS}",
    "a handshake": f"GET /v2/default/worker HTTP/1.1\r\n{HANDSHAKE}",
    "a handshake elsewhere": f"GET /x/{ATTACK} HTTP/1.1\r\n{HANDSHAKE}",
    "half a handshake": f"GET /v2/default/worker HTTP/1.1\r\n{UPGRADE}",
    "a method of no handshake": f"POST /v2/default/worker HTTP/1.1\r\n{HANDSHAKE}",
    "HTTP/2": f"GET /x/{ATTACK} HTTP/1.1\r\n{FIELDS}Connection: Upgrade\r\nUpgrade: h2c\r\n",
    "an unknown path": f"GET /{ATTACK} HTTP/1.1\r\n{FIELDS}",
    "an unknown host": "GET / HTTP/1.1\r\nHost: \x1b]0;owned\x07\r\n",
    "no HTTP": "\x16\x03\x01\x1b]0;owned\x07",
}


async def flood(port: int, enough: int) -> int:
    """Call as a worker without a token on many connections; return the number of refusals read."""
    count = 0

    async def call() -> None:
        nonlocal count
        reading, writing = await asyncio.open_connection("127.0.0.1", port)
        while count < enough:
            writing.write(f"GET /v2/default/job-take/{ATTACK} HTTP/1.1\r\n{FIELDS}\r\n".encode())
            head = await asyncio.wait_for(reading.readuntil(b"\r\n\r\n"), 20)
            length = re.search(rb"content-length: (\d+)", head)
            assert length is not None
            await reading.readexactly(int(length[1]))
            assert head.startswith((b"HTTP/1.1 401", b"HTTP/1.1 429"))
            count += 1
        writing.close()

    async with asyncio.TaskGroup() as group:
        for _ in range(SLOW + FAST):
            group.create_task(call())
    return count


async def test_a_flood_of_refusals_writes_few_lines_to_the_log(tmp_path: Path) -> None:
    async with command("proxy", "--port", "0", "--data-dir", str(tmp_path)) as proxy:
        port = int((await proxy.says(r"listens on http://\S+:(\d+)\.")).group(1))
        begun = time.monotonic()
        refusals = await flood(port, ENOUGH)
        tell("refusals of strangers a second", refusals / (time.monotonic() - begun))
        assert await proxy.stop() == 0
    written = [line for line in proxy.lines if "event=" in line]
    lines = [line for line in written if "event=worker.refused" in line]
    counts = [
        int(found)
        for found in re.findall(
            r"event=log\.suppressed name=worker\.refused lines=(\d+)", proxy.text
        )
    ]
    assert len(lines) == 10
    assert len(lines) + sum(counts) == refusals
    assert len("\n".join(written).encode()) < 4_000


async def test_no_unauthenticated_request_writes_escapes_to_a_terminal(tmp_path: Path) -> None:
    flags = ("--port", "0", "--data-dir", str(tmp_path), "--log-level", "debug")
    async with command("proxy", *flags, PROXY_API_KEY="alice=open-sesame") as proxy:
        port = int((await proxy.says(r"listens on http://\S+:(\d+)\.")).group(1))
        async with asyncio.TaskGroup() as group:
            for raw in KINDS.values():
                for _ in range(12):
                    group.create_task(refused(port, f"{raw}\r\n".encode("latin-1")))
        async with (
            aiohttp.ClientSession(f"http://127.0.0.1:{port}") as http,
            http.get("/livez") as response,
        ):
            assert response.status == 200
        assert await proxy.stop() == 0
    assert not [line for line in proxy.lines if not line.isprintable()]
    assert "Traceback" not in proxy.text
    assert "uvicorn" not in proxy.text, "a library complains about what is refused as it should be"
    names = re.findall(r"event=(\S+)", proxy.text)
    assert {name: names.count(name) for name in names if names.count(name) > 10} == {}


async def refused(port: int, raw: bytes) -> None:
    """Send one request; it must be refused, or its connection closed."""
    reading, writing = await asyncio.open_connection("127.0.0.1", port)
    try:
        writing.write(raw)
        if raw.startswith(b"\x16"):
            writing.write_eof()
        head = await asyncio.wait_for(reading.readline(), 20)
        assert re.match(rb"HTTP/1.1 4\d\d ", head) or not head, head
    finally:
        writing.close()
