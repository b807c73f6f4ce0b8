"""A refused worker prints the reason at once, in one line, and does not retry forever."""

import asyncio

import aiohttp
import pytest
from harness.proxy.server import CHAT, Proxy, chat, serving
from harness.tools.waiting import until
from harness.worker.process import WorkerProcess, worker

from proxy.wire import frames


async def ended(one: WorkerProcess) -> str:
    """Return the last line of a worker that has given up permanently."""
    assert await asyncio.wait_for(one.process.wait(), 20) == 78
    await until(lambda: any("worker.ended" in line for line in one.lines))
    return next(line for line in reversed(one.lines) if "event=" not in line)


async def test_a_wrong_token(proxy: Proxy) -> None:
    async with worker(proxy, wait=False, token="wrong") as one:
        assert "Wrong worker token" in await ended(one)
    assert not list(proxy.parts.fleet)


async def test_a_missing_token(proxy: Proxy) -> None:
    async with worker(proxy, wait=False, token="") as one:
        assert "no worker token is given; set WORKER_TOKEN or --token-file" in await ended(one)


async def test_an_unknown_endpoint(proxy: Proxy) -> None:
    async with worker(proxy, wait=False, endpoint="nowhere") as one:
        assert "no endpoint 'nowhere' here, only default" in await ended(one)


async def test_another_model_than_that_of_the_endpoint() -> None:
    async with serving(endpoint=["default=big"]) as proxy, worker(proxy, wait=False) as one:
        assert "serves big, this worker scripted" in await ended(one)


async def test_another_model_than_that_of_the_other_workers(proxy: Proxy) -> None:
    async with worker(proxy), worker(proxy, wait=False, served_model_name="other") as one:
        assert "serves scripted, this worker other" in await ended(one)
        assert proxy.ready == 1


@pytest.mark.parametrize(
    ("message", "code"),
    [
        (b"not msgpack", 4400),
        (frames.encode([frames.Heartbeat()]), 4400),
        (frames.encode([frames.Hello(99, "w", "x")]), 4426),
        (frames.encode([frames.Hello(1, "w", "x", [frames.Model("m", b"no json")])]), 4400),
        ("text", 4400),
    ],
)
async def test_malformed_first_messages_close_the_channel(
    proxy: Proxy, message: bytes | str, code: int
) -> None:
    headers = {"Authorization": f"Bearer {proxy.parts.token}"}
    async with proxy.http.ws_connect("/v2/default/worker", headers=headers) as socket:
        await (
            socket.send_bytes(message) if isinstance(message, bytes) else socket.send_str(message)
        )
        answer = await socket.receive(timeout=5)
        assert (answer.type, socket.close_code) == (aiohttp.WSMsgType.CLOSE, code)


@pytest.mark.parametrize(("path", "token", "status"), [
    ("/v2/default/worker", "wrong", 401),
    ("/v2/nowhere/worker", None, 404),
    ("/v2/default/other", None, 404),
    ("/v1/chat/completions", None, 426),
])  # fmt: skip
async def test_a_handshake_that_is_refused(
    proxy: Proxy, path: str, token: str | None, status: int
) -> None:
    headers = {"Authorization": f"Bearer {token or proxy.parts.token}"}
    with pytest.raises(aiohttp.WSServerHandshakeError) as refused:
        await proxy.http.ws_connect(path, headers=headers)
    assert refused.value.status == status


async def test_a_worker_can_send_frames_only_for_its_own_runs(proxy: Proxy) -> None:
    """A worker can answer neither the job of another worker nor an older attempt."""
    async with (
        worker(proxy),
        proxy.http.post(CHAT, json=chat("mine", stream=True, max_tokens=20, seed=20_000)) as mine,
    ):
        await mine.content.readuntil(b"mine 1 ")
        [mailbox] = list(proxy.parts.interactive)
        headers = {"Authorization": f"Bearer {proxy.parts.token}"}
        async with proxy.http.ws_connect("/v2/default/worker", headers=headers) as socket:
            forged = [
                frames.Hello(1, "w-stranger", "x"),
                frames.Chunk(mailbox.job.id, mailbox.job.attempt, b"data: forged\n\n"),
                frames.End(mailbox.job.id, mailbox.job.attempt, "completed"),
            ]
            await socket.send_bytes(frames.encode(forged))
            rest = await mine.read()
    assert b"forged" not in rest
    assert b"mine 19 " in rest
