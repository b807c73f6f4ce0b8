"""One proxy's life: it opens its store, listens, serves, drains and closes."""

import asyncio
import contextlib
import signal
import socket
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from functools import partial
from typing import cast

import structlog
import uvicorn

from proxy.app import Parts
from proxy.edge.memory import return_large_blocks
from proxy.edge.protocol import EdgeProtocol, WorkerProtocol
from proxy.service.background import keep
from proxy.settings import Settings
from proxy.wire.frames import SOCKET_BYTES

log = structlog.get_logger()

KEEP_ALIVE_SECONDS = 75
FLUSH_SECONDS = 2.0  # for the last bytes to reach the clients, once everything has ended
BACKLOG = 2048
SWITCH_SECONDS = 0.0001  # less than a busy turn of the event loop: else the store's thread waits seconds for its turn
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Server(uvicorn.Server):
    """uvicorn without its signal handling, since the drain is ours, and with a word when it listens."""

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self.listens = asyncio.Event()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self.listens.set()

    @contextlib.contextmanager
    def capture_signals(self):  # type: ignore[no-untyped-def]  # noqa: ANN201 - uvicorn's own
        yield


def listen(settings: Settings) -> socket.socket:
    """The listening socket; `OSError` when the address is taken."""
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    # asyncio turns Nagle's wait off only where a socket says that it is TCP; without that each small write waits 40 ms.
    listener = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((settings.host, settings.port))
    except OSError:
        listener.close()
        raise
    listener.setblocking(False)
    return listener


@contextlib.asynccontextmanager
async def running(parts: Parts, listener: socket.socket) -> AsyncIterator[None]:
    """Open the store and serve on this socket; raises `StoreUnavailableError` before anything else is done.

    Leaving is the drain: running calls finish, within the time that is set for it.
    """
    sys.setswitchinterval(SWITCH_SECONDS)
    return_large_blocks()
    async with parts.store.open():
        parts.orphans.find(await parts.store.running())
        async with _serving(parts, listener):
            yield


@contextlib.asynccontextmanager
async def _serving(parts: Parts, listener: socket.socket) -> AsyncIterator[None]:
    config = uvicorn.Config(
        parts.app,
        http=cast("type[EdgeProtocol]", partial(EdgeProtocol, parts.edge)),
        ws=WorkerProtocol,
        ws_max_size=SOCKET_BYTES,
        ws_per_message_deflate=False,
        ws_ping_interval=None,  # heartbeats are frames of the protocol; a worker that loads a model answers no ping
        loop="uvloop",
        lifespan="off",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,  # nothing here depends on a client's address
        backlog=BACKLOG,
        timeout_keep_alive=KEEP_ALIVE_SECONDS,
        timeout_graceful_shutdown=int(FLUSH_SECONDS),
    )
    server = Server(config)
    loops: dict[str, Callable[[], Awaitable[None]]] = {
        "crowd": parts.edge.connections.serve,
        "sweeper": parts.sweeper.serve,
        "forgetting": parts.sweeper.serve_forgetting,
        "roster": parts.registry.serve,
        "recorder": parts.recorder.serve,
        "deliveries": parts.deliveries.serve,
        **{f"dispatch {one.id}": partial(parts.dispatch.serve, one.id) for one in parts.endpoints},
    }
    tasks = [asyncio.create_task(keep(serve, name), name=name) for name, serve in loops.items()]
    serving = asyncio.create_task(server.serve(sockets=[listener]), name="server")
    await server.listens.wait()
    try:
        yield
    finally:
        await drain(parts)
        server.should_exit = True
        await serving
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def drain(parts: Parts) -> None:
    """Stop taking; finish, or hand back; close."""
    parts.admission.close()
    await parts.interactive.end_waiting()
    if not await parts.output.wait_empty(parts.settings.drain):
        log.warning("drain.cut", calls=len(parts.output))
        await parts.interactive.end_running()
        await parts.output.wait_empty(FLUSH_SECONDS)
    parts.durable.let_go()
    for worker in parts.fleet:
        if worker.port is not None:
            worker.port.close("the proxy is shutting down")
    await parts.recorder.flush_all()
    await parts.background.finish(FLUSH_SECONDS)
    await parts.deliveries.drain(FLUSH_SECONDS)


async def until_signal(on_second_interrupt: Callable[[], None] | None = None) -> None:
    """Wait for SIGINT, SIGTERM or SIGHUP (the terminal was closed).

    From then on, these signals end the process by default, except that a SIGINT calls
    `on_second_interrupt`, if given, in the signal handler.
    """
    loop = asyncio.get_running_loop()
    stopped = asyncio.Event()

    def stop() -> None:
        stopped.set()
        for each in SIGNALS:
            loop.remove_signal_handler(each)
        if on_second_interrupt is not None:
            signal.signal(signal.SIGINT, lambda _number, _frame: on_second_interrupt())

    for each in SIGNALS:
        loop.add_signal_handler(each, stop)
    await stopped.wait()
