"""A receiver of webhooks: a real server on loopback with the responses of a test."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import TypeAlias

from aiohttp import web

NEXT_TIMEOUT_SECONDS = 10.0

Answer: TypeAlias = Callable[[web.Request], Awaitable[web.StreamResponse]]


@dataclass(frozen=True)
class ReceivedWebhook:
    """A request to the receiver. Header names are in lower case."""

    path: str
    headers: dict[str, str]
    body: bytes

    @property
    def id(self) -> str:
        """The id of the delivery, the same for all attempts."""
        return self.headers["webhook-id"]


@dataclass
class Receiver:
    """A server that records its requests.

    It responds with `statuses` in order, then with 200; with `answer`, if set; and not at all as
    long as `may_answer` is cleared. `most` is the maximum of concurrent requests.
    """

    port: int = 0
    received: asyncio.Queue[ReceivedWebhook] = field(default_factory=asyncio.Queue)
    statuses: list[int] = field(default_factory=list)
    answer: Answer | None = None
    may_answer: asyncio.Event = field(default_factory=asyncio.Event)
    now: int = 0
    most: int = 0

    @property
    def url(self) -> str:
        """The URL of the webhook, with a secret in its query."""
        return f"http://127.0.0.1:{self.port}/hook?token=hush"

    def named(self, host: str) -> str:
        """Return the URL with a host name."""
        return f"http://{host}:{self.port}/hook?token=hush"

    async def next(self) -> ReceivedWebhook:
        """Return the next request; fail after `NEXT_TIMEOUT_SECONDS`."""
        return await asyncio.wait_for(self.received.get(), NEXT_TIMEOUT_SECONDS)

    async def handle(self, request: web.Request) -> web.StreamResponse:
        self.now += 1
        self.most = max(self.most, self.now)
        try:
            headers = {name.lower(): value for name, value in request.headers.items()}
            body = await request.read()
            self.received.put_nowait(ReceivedWebhook(request.path_qs, headers, body))
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
    """A listening socket that must get no connections. `heard` has the first bytes of each."""

    port: int = 0
    connections: int = 0
    heard: asyncio.Queue[bytes] = field(default_factory=asyncio.Queue)


@asynccontextmanager
async def trap() -> AsyncIterator[Trap]:
    """A trap on a free port of every loopback address."""
    running = Trap()

    async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        running.connections += 1
        running.heard.put_nowait(await reader.read(4096))
        writer.close()

    # Connections to 127.0.0.2 and 0.0.0.0 arrive here as well.
    server = await asyncio.start_server(accept, "0.0.0.0", 0)
    running.port = server.sockets[0].getsockname()[1]
    async with server:
        yield running
