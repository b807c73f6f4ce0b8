"""Who is told by webhooks: a real server on loopback that answers as a test wants it."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import TypeAlias

from aiohttp import web

SECONDS = 10.0

Answer: TypeAlias = Callable[[web.Request], Awaitable[web.StreamResponse]]


@dataclass(frozen=True)
class RateLimitStatus:
    """One request that it got."""

    path: str
    headers: dict[str, str]
    body: bytes

    @property
    def id(self) -> str:
        """Which delivery it is a try of."""
        return self.headers["webhook-id"]


@dataclass
class Receiver:
    """A server that takes down what it is told."""

    port: int = 0
    told: asyncio.Queue[RateLimitStatus] = field(default_factory=asyncio.Queue)
    statuses: list[int] = field(
        default_factory=list
    )  # of its next answers; 200 when there are none left
    answer: Answer | None = None  # in the place of a status
    may_answer: asyncio.Event = field(
        default_factory=asyncio.Event
    )  # cleared: it takes requests and says nothing
    now: int = 0
    most: int = 0  # requests at once, ever

    @property
    def url(self) -> str:
        """Where it listens."""
        return f"http://127.0.0.1:{self.port}/hook?token=hush"

    def named(self, host: str) -> str:
        """The same under a name."""
        return f"http://{host}:{self.port}/hook?token=hush"

    async def next(self) -> RateLimitStatus:
        """What it is told next."""
        return await asyncio.wait_for(self.told.get(), SECONDS)

    async def handle(self, request: web.Request) -> web.StreamResponse:
        self.now += 1
        self.most = max(self.most, self.now)
        try:
            headers = {name.lower(): value for name, value in request.headers.items()}
            self.told.put_nowait(RateLimitStatus(request.path_qs, headers, await request.read()))
            await self.may_answer.wait()
            if self.answer is not None:
                return await self.answer(request)
            return web.Response(status=self.statuses.pop(0) if self.statuses else 200)
        finally:
            self.now -= 1


@asynccontextmanager
async def receiver() -> AsyncIterator[Receiver]:
    """A receiver on a free port."""
    running = Receiver()
    running.may_answer.set()
    app = web.Application(client_max_size=64 * 1024 * 1024)
    app.router.add_route("*", "/{path:.*}", running.handle)
    runner = web.AppRunner(app, shutdown_timeout=0.1, handler_cancellation=True)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    running.port = runner.addresses[0][1]
    try:
        yield running
    finally:
        running.may_answer.set()
        await runner.cleanup()


@dataclass
class Trap:
    """A listening socket that nobody should ever connect to."""

    port: int = 0
    connections: int = 0
    heard: asyncio.Queue[bytes] = field(
        default_factory=asyncio.Queue
    )  # the first bytes of each connection


@asynccontextmanager
async def trap() -> AsyncIterator[Trap]:
    """A trap on a free port of every loopback address."""
    running = Trap()

    async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        running.connections += 1
        running.heard.put_nowait(await reader.read(4096))
        writer.close()

    server = await asyncio.start_server(accept, "0.0.0.0", 0)  # 127.0.0.2 and 0.0.0.0 lead here too
    running.port = server.sockets[0].getsockname()[1]
    async with server:
        yield running
