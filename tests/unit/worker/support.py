"""Shared by the worker's tests: a fake proxy on a real socket, and a runtime connected to it."""

import asyncio
import contextlib
import json
import random
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from typing import Any, Self, TypeVar

from websockets.asyncio.server import Server, ServerConnection, serve
from websockets.exceptions import ConnectionClosedError

from proxy.wire.frames import (
    Body,
    Chunk,
    End,
    Frame,
    Hello,
    Job,
    JobFrame,
    ToProxy,
    decode_to_proxy,
    encode,
)
from worker_vllm.asgi import App, Receive, Request, Scope, Send
from worker_vllm.channel.connection import Channel, ChannelTimeouts, WakingOutbox
from worker_vllm.channel.dial import Dialler, Handshake, Link
from worker_vllm.engine.base import Engine, Reading, read_models
from worker_vllm.runtime import Runtime

# Seconds. A test that waits longer has failed.
DEADLINE = 30.0
DIALLER = Dialler(Handshake, random.uniform)
CHAT = "/v1/chat/completions"
FrameType = TypeVar("FrameType", bound=Frame)


def chat(message: str = "hello", **fields: Any) -> Request:
    """Return a streamed chat request with three tokens; `fields` are added to its body."""
    body = {
        "messages": [{"role": "user", "content": message}],
        "stream": True,
        "max_tokens": 3,
    } | fields
    return Request("POST", CHAT, "application/json", json.dumps(body).encode())


@dataclass
class Line:
    """A connection of a worker, as seen by the proxy."""

    socket: ServerConnection
    frames: list[ToProxy] = field(default_factory=list)
    messages: list[list[ToProxy]] = field(default_factory=list)
    events: asyncio.Condition = field(default_factory=asyncio.Condition)
    is_over: bool = False

    async def send(self, *frames: Frame) -> None:
        await self.socket.send(encode(list(frames)))

    async def send_job(
        self, job: str, request: Request, attempt: int = 1, *, light: bool = False
    ) -> None:
        """Send a job and its whole body."""
        size = len(request.body)
        head = Job(job, attempt, request.method, request.path, request.content_type, size, light)
        await self.send(head, Body(job, attempt, request.body))

    async def until(self, condition: Callable[[], bool]) -> None:
        async with asyncio.timeout(DEADLINE), self.events:
            await self.events.wait_for(condition)

    async def wait_for(self, kind: type[FrameType], job: str = "") -> FrameType:
        """Wait for the first frame of a kind, of the given job if any, and return it."""

        def found() -> list[FrameType]:
            return [
                frame for frame in self.frames if isinstance(frame, kind) and _is_of(frame, job)
            ]

        await self.until(lambda: bool(found()))
        return found()[0]

    def of(self, job: str) -> list[JobFrame]:
        """Return the frames of a job."""
        return [frame for frame in self.frames if isinstance(frame, JobFrame) and frame.job == job]

    def text(self, job: str) -> bytes:
        """Return the response body of a job."""
        return b"".join(frame.data for frame in self.of(job) if isinstance(frame, Chunk))

    def ends(self, job: str) -> list[End]:
        return [frame for frame in self.of(job) if isinstance(frame, End)]

    async def read(self) -> None:
        with contextlib.suppress(ConnectionClosedError):
            async for message in self.socket:
                assert isinstance(message, bytes)
                frames = decode_to_proxy(message)
                async with self.events:
                    self.messages.append(frames)
                    self.frames += frames
                    self.events.notify_all()


async def until(condition: Callable[[], bool]) -> None:
    """Poll a condition until it is true."""
    async with asyncio.timeout(DEADLINE):
        while not condition():  # noqa: ASYNC110 - the code under test does not have such an event
            await asyncio.sleep(0.001)


def _is_of(frame: Frame, job: str) -> bool:
    return not job or (isinstance(frame, JobFrame) and frame.job == job)


class FakeProxy:
    """Accepts workers on a real socket and records their frames."""

    def __init__(self) -> None:
        self.lines: asyncio.Queue[Line] = asyncio.Queue()
        self.server: Server | None = None
        # While it is cleared, the proxy does not read, and the socket fills up.
        self.reads = asyncio.Event()
        self.reads.set()

    @property
    def url(self) -> str:
        assert self.server is not None
        return f"ws://127.0.0.1:{self.server.sockets[0].getsockname()[1]}/v2/default/worker"

    async def next_line(self) -> Line:
        """Return the next connection that has sent a `Hello`; skip those that end before."""
        async with asyncio.timeout(DEADLINE):
            while True:
                line = await self.lines.get()
                await line.until(lambda: line.is_over or bool(line.frames))  # noqa: B023 - awaited here
                if line.frames:
                    await line.wait_for(Hello)
                    return line

    async def serve(self, socket: ServerConnection) -> None:
        line = Line(socket)
        self.lines.put_nowait(line)
        await self.reads.wait()
        try:
            await line.read()
        finally:
            async with line.events:
                line.is_over = True
                line.events.notify_all()


@contextlib.asynccontextmanager
async def fake_proxy() -> AsyncIterator[FakeProxy]:
    proxy = FakeProxy()
    async with serve(proxy.serve, "127.0.0.1", 0, compression=None, max_size=None) as server:
        proxy.server = server
        yield proxy


@dataclass
class Worker:
    """A connected worker without a process of its own."""

    runtime: Runtime
    channel: Channel
    outbox: WakingOutbox
    running: asyncio.Task[None]


@contextlib.asynccontextmanager
async def working(
    engine: Engine, url: str, slots: int = 4, timeouts: ChannelTimeouts | None = None
) -> AsyncIterator[Worker]:
    """Run the runtime and the channel of a worker that dials `url`."""
    models = await read_models(engine)
    async with asyncio.TaskGroup() as group:
        runtime = Runtime("w-test", engine, models, slots, group)
        channel = Channel(
            Link(url, "token", "w-test"), runtime, timeouts or ChannelTimeouts(5.0), DIALLER
        )
        running = group.create_task(channel.run())
        try:
            yield Worker(runtime, channel, channel.outbox, running)
        finally:
            await runtime.lose_all("test_over", "")
            running.cancel()


class AppEngine:
    """An engine that consists of an ASGI app."""

    def __init__(self, app: App, *, dead: bool = False) -> None:
        self.name = "app"
        self.app = app
        self.authorization = ""
        self.slots = 4
        self.dead = dead
        self.failure = "the engine died"
        self.known: dict[str, frozenset[str]] = {}
        self.reading: Reading | None = None

    def fields(self, path: str) -> frozenset[str]:
        return self.known.get(path, frozenset())

    def routes(self) -> frozenset[str]:
        return frozenset(self.known)

    async def read(self) -> Reading | None:
        return self.reading

    def progress(self) -> int:
        return 0

    def kill(self) -> None:
        self.dead = True

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        return None


def app_of(
    *bodies: bytes, status: int = 200, content_type: str = "text/event-stream", whole: bool = True
) -> App:
    """Return an app that sends these parts, and the end of its body if `whole` is set."""

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        headers = [(b"content-type", content_type.encode())]
        await send({"type": "http.response.start", "status": status, "headers": headers})
        for body in bodies:
            await send({"type": "http.response.body", "body": body, "more_body": True})
        if whole:
            await send({"type": "http.response.body", "body": b""})

    return app
