"""Large events of a stream are sent in pieces, from every engine, and never buffered whole."""

import asyncio
import hashlib
import itertools
import json
import tracemalloc
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import pytest
from aiohttp import web
from harness.worker.process import environment, worker_process

from proxy.wire.frames import PART_BYTES, STREAM_WINDOW, Chunk, End, Pause, Resume
from proxy.wire.sse import EVENT_MAX_BYTES, Part
from tests.unit.worker.support import (
    CHAT,
    AppEngine,
    FakeProxy,
    Line,
    app_of,
    chat,
    fake_proxy,
    until,
    working,
)
from worker_vllm.asgi import App, Head, Receive, Scope, Send
from worker_vllm.engine.upstream import UpstreamEngine
from worker_vllm.handler import Answer, answer_input
from worker_vllm.inputs.gauges import Gauges
from worker_vllm.run import OLD_PROXY_SECONDS

# Size of an event of vLLM that exceeded an earlier limit.
LARGE_EVENT_BYTES = 1_094_182
HUGE_EVENT_BYTES = 20 * 1024 * 1024
DONE = b"data: [DONE]\n\n"
KB = 1024


def event(size: int, text: bytes = b"x") -> bytes:
    """Return an event of `size` bytes."""
    return b"data: " + text * (size - 8) + b"\n\n"


class Upstream:
    """A server that responds to a chat with one stream.

    The second half of its bytes waits for `may_go_on`.
    """

    def __init__(self, stream: bytes) -> None:
        self.stream = stream
        self.may_go_on = asyncio.Event()
        self.may_go_on.set()
        self.url = ""

    async def chat(self, request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"content-type": "text/event-stream"})
        await response.prepare(request)
        half = len(self.stream) // 2
        view = memoryview(self.stream)
        for start in range(0, len(view), 48 * KB):
            if start > half:
                await self.may_go_on.wait()
            await response.write(view[start : start + 48 * KB])
        return response

    async def models(self, _: web.Request) -> web.Response:
        return web.json_response({"data": [{"id": "m"}]})


@asynccontextmanager
async def upstream(stream: bytes) -> AsyncIterator[Upstream]:
    server, app = Upstream(stream), web.Application()
    app.router.add_get("/v1/models", server.models)
    app.router.add_post(CHAT, server.chat)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    server.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
    yield server
    await runner.cleanup()


@asynccontextmanager
async def engine_of(kind: str, stream: bytes) -> AsyncIterator[AppEngine | UpstreamEngine]:
    """Start an engine that responds to a chat with this stream."""
    async with AsyncExitStack() as stack:
        if kind == "upstream":
            server = await stack.enter_async_context(upstream(stream))
            yield await stack.enter_async_context(UpstreamEngine(server.url, "", lambda _: None))
        else:
            yield AppEngine(_app(stream))


def _app(stream: bytes) -> App:
    answer = app_of(stream)
    models = app_of(b'{"data": [{"id": "m"}]}', content_type="application/json")

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await (answer if scope["method"] == "POST" else models)(scope, receive, send)

    return app


async def read(line: Line, job: str) -> None:
    """Read a stream to its end like the proxy, with a `Resume` for every half window."""
    seen = owed = 0
    while not line.ends(job):
        await line.until(lambda: len(line.frames) > seen)  # noqa: B023 - awaited here
        owed += sum(len(frame.data) for frame in line.frames[seen:] if isinstance(frame, Chunk))
        seen = len(line.frames)
        if owed >= STREAM_WINDOW // 2:
            owed = 0
            await line.send(Resume(job, 1))


def digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


@pytest.mark.parametrize("kind", ["upstream", "in process"])
@pytest.mark.parametrize(
    "size", [EVENT_MAX_BYTES, EVENT_MAX_BYTES + 1, LARGE_EVENT_BYTES, HUGE_EVENT_BYTES]
)
async def test_a_large_event_is_sent_in_pieces(kind: str, size: int) -> None:
    stream = event(100) + event(size) + event(100, b"y") + DONE
    async with engine_of(kind, stream) as engine, fake_proxy() as proxy, working(engine, proxy.url):
        line = await proxy.next_line()
        await line.send_job("j", chat())
        await read(line, "j")
        assert line.ends("j") == [End("j", 1, "completed")]

    chunks = [frame for frame in line.of("j") if isinstance(frame, Chunk)]
    assert digest(line.text("j")) == digest(stream)
    assert all(len(chunk.data) <= PART_BYTES for chunk in chunks)
    ends = itertools.accumulate(len(chunk.data) for chunk in chunks)
    wholes = {end for end, chunk in zip(ends, chunks, strict=True) if not chunk.more}
    # The positions at which events end.
    assert wholes <= {100, 100 + size, 200 + size, len(stream)}
    assert len(stream) in wholes


async def test_an_event_is_forwarded_before_it_is_complete() -> None:
    async with upstream(event(2 * EVENT_MAX_BYTES + 200 * KB)) as server:
        server.may_go_on.clear()
        async with UpstreamEngine(server.url, "", lambda _: None) as engine:
            size = 0
            async for part in Answer(engine, chat()):
                if isinstance(part, Part):
                    assert len(part.data) <= EVENT_MAX_BYTES
                    size += len(part.data)
                    server.may_go_on.set()

    assert size == len(server.stream)


async def test_an_event_waits_for_a_slow_reader() -> None:
    stream = event(HUGE_EVENT_BYTES)
    async with (
        engine_of("upstream", stream) as engine,
        fake_proxy() as proxy,
        working(engine, proxy.url) as worker,
    ):
        line = await proxy.next_line()
        await line.send_job("j", chat())
        await line.wait_for(Chunk, "j")
        await line.send(Pause("j", 1))
        await until(lambda: not worker.runtime.is_waiting_for_engine and worker.outbox.size == 0)
        await line.until(lambda: len(line.text("j")) >= STREAM_WINDOW)
        # A pause has no time limit.
        await asyncio.sleep(OLD_PROXY_SECONDS * 1.2)
        assert len(line.text("j")) < STREAM_WINDOW + 2 * EVENT_MAX_BYTES
        await line.send(Resume("j", 1))
        await read(line, "j")

    assert digest(line.text("j")) == digest(stream)


async def test_an_older_proxy_receives_the_whole_event() -> None:
    """An older proxy sends `Resume` only after the end of an event."""
    stream = event(STREAM_WINDOW * 2)
    engine = AppEngine(_app(stream))
    async with fake_proxy() as proxy, working(engine, proxy.url):
        line = await proxy.next_line()
        await line.send_job("j", chat())
        await line.wait_for(End, "j")

    assert line.text("j") == stream


async def test_an_event_of_the_engines_own_process_is_not_copied() -> None:
    engine = AppEngine(_app(event(HUGE_EVENT_BYTES)))
    tracemalloc.start()
    try:
        async for _ in Answer(engine, chat()):
            pass
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 2 * 1024 * KB


@pytest.mark.torture
async def test_a_worker_buffers_little_of_an_upstreams_event() -> None:
    stream = event(HUGE_EVENT_BYTES) + DONE
    async with upstream(stream) as server, fake_proxy() as proxy:
        variables = environment(connect=_http(proxy), token="t", upstream=server.url, id="w")
        async with worker_process(variables=variables) as one:
            line = await proxy.next_line()
            while not any(frame for frame in line.frames if getattr(frame, "slots", 0)):
                line = await proxy.next_line()
            await line.send_job("warm", chat())
            await read(line, "warm")
            before = _peak_memory(one.process.pid)
            await line.send_job("j", chat())
            await read(line, "j")
            assert digest(line.text("j")) == digest(stream)
            assert _peak_memory(one.process.pid) - before < 4 * 1024 * KB


def _http(proxy: FakeProxy) -> str:
    return proxy.url.replace("ws:", "http:").removesuffix("/v2/default/worker")


def _peak_memory(pid: int) -> int:
    rows = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(row.split()[1]) * KB for row in rows if row.startswith("VmHWM:"))


@pytest.mark.parametrize("kind", ["upstream", "in process"])
async def test_a_large_error_event_fails_the_job(kind: str) -> None:
    error = b'data: {"error": {"message": "' + b"x" * LARGE_EVENT_BYTES + b'"}}\n\n'
    async with engine_of(kind, event(100) + error + DONE) as engine, fake_proxy() as proxy:
        async with working(engine, proxy.url):
            line = await proxy.next_line()
            await line.send_job("j", chat())
            await read(line, "j")
            assert [(end.ending, end.code) for end in line.ends("j")] == [("failed", "error_event")]


async def test_a_large_event_that_contains_the_text_of_an_error_does_not_fail_the_job() -> None:
    stream = (
        event(EVENT_MAX_BYTES)
        + b"data: "
        + b"x" * EVENT_MAX_BYTES
        + b'data: {"error"'
        + b"x" * EVENT_MAX_BYTES
        + b"\n\n"
    )
    # `handle` raises if the job has failed.
    parts = [part async for part in Answer(AppEngine(_app(stream)), chat())]
    assert isinstance(parts[0], Head)


def gauges_of(engine: AppEngine) -> Gauges:
    return Gauges(engine.read, asyncio.get_running_loop().time)


async def test_a_large_event_is_whole_in_a_jobs_output() -> None:
    large = event(LARGE_EVENT_BYTES)
    raw = json.dumps({"openai_route": CHAT, "openai_input": {"stream": True}}).encode()
    engine = AppEngine(_app(event(100) + large + DONE))
    outputs = [one.value async for one in answer_input(engine, gauges_of(engine), raw, "m", "seed")]
    assert [json.loads(value) for value in outputs] == [
        event(100).decode(),
        large.decode(),
        DONE.decode(),
    ]


async def test_a_large_step_is_one_element_of_a_native_stream() -> None:
    step = b'data: {"choices": [{"index": 0, "text": "' + b"x" * LARGE_EVENT_BYTES + b'"}]}\n\n'
    engine = AppEngine(_app(step + DONE))
    raw = b'{"prompt": "hi", "stream": true}'
    outputs = [one.value async for one in answer_input(engine, gauges_of(engine), raw, "m", "seed")]
    assert [json.loads(value)["text"] for value in outputs] == [["x" * LARGE_EVENT_BYTES]]
