"""The worker as a process: its startup, its shutdown and its exit codes."""

import asyncio
import os
import signal
import sys
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator, Awaitable, Callable
from http import HTTPStatus

import pytest
from websockets.asyncio.server import ServerConnection, serve
from websockets.http11 import Request, Response

from proxy.wire.frames import Chunk, Credit, End, Hello, Log
from tests.unit.worker.support import DEADLINE, DIALLER, FakeProxy, chat, fake_proxy
from worker_vllm.channel.connection import ChannelTimeouts
from worker_vllm.channel.dial import Link
from worker_vllm.channel.loading import Loading


@pytest.fixture
async def proxy() -> AsyncIterator[FakeProxy]:
    async with fake_proxy() as running:
        yield running


Start = Callable[..., Awaitable[Process]]


@pytest.fixture
async def start() -> AsyncIterator[Start]:
    """Return a function that starts worker processes; none outlives the test."""
    processes: list[Process] = []

    async def start(connect: str, **variables: str) -> Process:
        environment = {
            name: value for name, value in os.environ.items() if not name.startswith("WORKER_")
        }
        environment |= {
            "WORKER_CONNECT": connect,
            "WORKER_ENGINE": "scripted",
            "WORKER_TOKEN": "t",
        } | variables
        command = (sys.executable, "-m", "worker_vllm")
        processes.append(
            await asyncio.create_subprocess_exec(*command, env=environment, stderr=PIPE)
        )
        return processes[-1]

    yield start
    for process in processes:
        if process.returncode is None:
            process.kill()
            await process.communicate()


async def end(process: Process) -> tuple[int, str]:
    async with asyncio.timeout(DEADLINE):
        _, errors = await process.communicate()
    assert process.returncode is not None
    return process.returncode, errors.decode()


def base_of(proxy: FakeProxy) -> str:
    return proxy.url.replace("ws:", "http:").removesuffix("/v2/default/worker")


async def test_a_worker_announces_itself_while_it_loads_and_takes_over_when_ready(
    proxy: FakeProxy, start: Start
) -> None:
    process = await start(base_of(proxy), WORKER_METRICS_PORT="0")
    loading = await proxy.next_line()
    assert loading.frames[1] == Credit(0, 0)
    ready = await proxy.next_line()
    hello = await ready.wait_for(Hello)
    assert hello.worker == (await loading.wait_for(Hello)).worker
    assert [model.id for model in hello.models] == ["scripted"]

    await ready.send_job("j", chat(max_tokens=5, seed=10_000))
    await ready.wait_for(Chunk, "j")
    process.send_signal(signal.SIGTERM)
    code, errors = await end(process)

    assert code == 0
    assert (await ready.wait_for(End, "j")).ending == "completed"
    assert ready.socket.close_code == 1001
    assert 'event=worker.stage text="starting the scripted engine"' in errors
    assert "event=metrics.listening url=http://127.0.0.1:" in errors


async def test_a_dead_engine_ends_the_worker(proxy: FakeProxy, start: Start) -> None:
    process = await start(base_of(proxy))
    await proxy.next_line()
    line = await proxy.next_line()
    await line.send_job("a", chat(max_tokens=1_000_000, seed=1000))
    await line.wait_for(Chunk, "a")
    await line.send_job("b", chat(fault="engine_dead:1"))
    code, errors = await end(process)

    assert code == 70
    assert (await line.wait_for(End, "a")).code == "engine_dead"
    assert (await line.wait_for(End, "b")).code == "engine_dead"
    assert "the engine died" in errors


async def test_a_second_signal_ends_at_once(proxy: FakeProxy, start: Start) -> None:
    process = await start(base_of(proxy))
    await proxy.next_line()
    line = await proxy.next_line()
    await line.send_job("j", chat(max_tokens=1_000_000, seed=1000))
    await line.wait_for(Chunk, "j")
    process.send_signal(signal.SIGINT)
    await line.until(lambda: Credit(0, 0) in line.frames)
    process.send_signal(signal.SIGINT)

    assert (await end(process))[0] == 1


async def test_an_invalid_setting_is_one_line_and_exit_2(start: Start) -> None:
    code, errors = await end(await start("nonsense"))

    assert code == 2
    assert errors.startswith("WORKER_CONNECT is wrong: ")
    assert errors.count("\n") == 1


async def test_a_refusal_is_one_line_and_exit_78(start: Start) -> None:
    async def nothing(_: ServerConnection) -> None: ...

    def refuse(socket: ServerConnection, _: Request) -> Response:
        return socket.respond(HTTPStatus.UNAUTHORIZED, "wrong worker token")

    async with serve(nothing, "127.0.0.1", 0, process_request=refuse) as server:
        url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        code, errors = await end(await start(url))

    assert code == 78
    assert "answered 401: wrong worker token" in errors
    assert "Traceback" not in errors


async def test_a_signal_while_the_engine_starts_ends_the_worker(
    proxy: FakeProxy, start: Start
) -> None:
    process = await start(base_of(proxy), WORKER_UPSTREAM="http://127.0.0.1:9")
    line = await proxy.next_line()
    await line.wait_for(Log)
    process.send_signal(signal.SIGTERM)
    code, errors = await end(process)

    assert code == 0
    assert "Traceback" not in errors


async def test_an_orphan_ends(start: Start) -> None:
    code, errors = await end(await start("http://127.0.0.1:9", WORKER_ORPHAN_SECONDS="1"))

    assert code == 69
    assert "the proxy at ws://127.0.0.1:9/v2/default/worker has been unreachable" in errors


async def test_a_loading_connection_may_be_ended_twice(proxy: FakeProxy) -> None:
    """Its thread may end by itself, when the proxy replaces the connection, during a `close`."""
    loading = Loading(
        Link(proxy.url, "token", "w-twice"), "scripted", ChannelTimeouts(5.0), DIALLER
    )
    await asyncio.to_thread(loading.start)
    for _ in range(2):
        await asyncio.to_thread(loading.close)
        loading.say("too late")
    assert loading.failure is None
