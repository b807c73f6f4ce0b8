"""The life cycle of a proxy: open the store, listen, serve, drain, close."""

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
from proxy.edge.guard import GuardProtocol
from proxy.edge.memory import return_large_blocks, trim_heap
from proxy.edge.protocol import WorkerProtocol
from proxy.service.background import keep
from proxy.settings import Settings
from proxy.store.errors import StoreError, StoreGoneError, StoreUnavailableError
from proxy.wire.frames import SOCKET_BYTES

log = structlog.get_logger()

KEEP_ALIVE_SECONDS = 75

# Time for the last bytes to reach the clients after all requests have ended.
FLUSH_SECONDS = 2.0
# The steps of a drain that each wait for at most this time.
DRAIN_STEPS = 4

LISTEN_BACKLOG_CONNECTIONS = 2048

# Python's switch interval between threads. It is shorter than one turn of a busy event loop;
# otherwise the store's thread would wait seconds until it can run.
THREAD_SWITCH_SECONDS = 0.0001

STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Server(uvicorn.Server):
    """uvicorn's server without its signal handling, because the proxy drains by itself.

    Attributes:
        listens: set when the server accepts connections.

    """

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
    """Return the listening socket. Raises OSError if the address is in use."""
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    # asyncio sets TCP_NODELAY only on sockets whose protocol is IPPROTO_TCP. Without it each small
    # write is delayed by 40 ms.
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
    """Open the store and serve on this socket. Leaving the context drains the proxy.

    Raises StoreUnavailableError before the proxy serves. During the drain, running calls may finish
    within the time limit of the settings.
    """
    sys.setswitchinterval(THREAD_SWITCH_SECONDS)
    return_large_blocks()
    async with parts.store.open():
        try:
            await _read_store(parts)
        except StoreGoneError as error:
            raise StoreUnavailableError(f"{error}. See docs/durability.md.") from error
        async with _serving(parts, listener):
            yield


async def _read_store(parts: Parts) -> None:
    if parts.is_seal_key_new:
        await _check_new_seal_key(parts)
    await parts.clock_check.start()
    parts.orphans.find(await parts.store.running())
    await parts.served_models.restore()


async def _check_new_seal_key(parts: Parts) -> None:
    """Reject a new key for a store that needs the earlier one; the key is removed again."""
    if await parts.store.has_secrets():
        path = parts.settings.seal_key_file()
        path.unlink()
        raise StoreUnavailableError(
            f"{path} is missing, and jobs in the store have secrets that only it decrypts. Restore"
            " it from a backup; or see docs/durability.md."
        )


@contextlib.asynccontextmanager
async def _serving(parts: Parts, listener: socket.socket) -> AsyncIterator[None]:
    config = uvicorn.Config(
        parts.app,
        http=cast("type[GuardProtocol]", partial(GuardProtocol, parts.edge)),
        ws=WorkerProtocol,
        ws_max_size=SOCKET_BYTES,
        ws_per_message_deflate=False,
        # Heartbeats are frames of the protocol. A worker that loads a model does not answer pings.
        ws_ping_interval=None,
        loop="uvloop",
        lifespan="off",
        log_config=None,
        access_log=False,
        server_header=False,
        # The proxy does not use the addresses of clients.
        proxy_headers=False,
        backlog=LISTEN_BACKLOG_CONNECTIONS,
        timeout_keep_alive=KEEP_ALIVE_SECONDS,
        timeout_graceful_shutdown=int(FLUSH_SECONDS),
    )
    server = Server(config)
    loops: dict[str, Callable[[], Awaitable[None]]] = {
        "connections": parts.edge.connections.serve,
        "heap": trim_heap,
        "sweeper": parts.sweeper.serve,
        "queue watch": parts.queue_watch.serve,
        "served models": parts.served_models.serve,
        "orphans": parts.durable_sweeper.serve,
        "durable jobs": parts.durable_sweeper.serve_overdue,
        "retention": parts.durable_sweeper.serve_forgetting,
        "registry": parts.registry.serve,
        "recorder": parts.recorder.serve,
        "deliveries": parts.deliveries.serve,
    }
    for endpoint in parts.endpoints:
        loops[f"dispatch {endpoint.id}"] = partial(parts.dispatch.serve, endpoint.id)
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
    """Stop accepting work, wait for running calls or end them, close workers, write all data."""
    parts.admission.close()
    parts.retries.close()
    parts.interactive.end_waiting()
    seconds = parts.settings.drain
    if parts.store.gone:
        # `until_store_is_gone` has used one half, and the other one includes the steps below.
        seconds = max(0.0, seconds / 2 - DRAIN_STEPS * FLUSH_SECONDS)
    if not await parts.interactive.wait_empty(seconds):
        log.warning("drain.cut", calls=len(parts.interactive))
        parts.interactive.end_running()
        await parts.interactive.wait_empty(FLUSH_SECONDS)
    parts.view.let_go()
    for worker in parts.fleet:
        if worker.port is not None:
            worker.port.close("the proxy is shutting down")
    try:
        await parts.recorder.flush_all()
    except StoreError as error:
        # The rest of the drain does not depend on the store.
        log.error("store.failed", task="drain", why=str(error))  # noqa: TRY400
    await parts.background.finish(FLUSH_SECONDS)
    await parts.deliveries.drain(FLUSH_SECONDS)


async def until_store_is_gone(parts: Parts) -> None:
    """Wait until the store has failed for good; then serve OpenAI calls for half of the drain, so
    that load balancers can notice it. The proxy has to be drained afterwards.
    """
    await parts.store.until_gone()
    # Calls that wait for a job would wait for an end that nothing can write.
    parts.events.notify_all()
    await asyncio.sleep(parts.settings.drain / 2)


async def until_signal(on_second_interrupt: Callable[[], None] | None = None) -> None:
    """Wait for SIGINT, SIGTERM or SIGHUP (the terminal was closed).

    From then on, these signals end the process by default, except that a SIGINT calls
    `on_second_interrupt`, if given, in the signal handler.
    """
    loop = asyncio.get_running_loop()
    stopped = asyncio.Event()

    def stop() -> None:
        stopped.set()
        for each in STOP_SIGNALS:
            loop.remove_signal_handler(each)
        if on_second_interrupt is not None:
            signal.signal(signal.SIGINT, lambda _number, _frame: on_second_interrupt())

    for each in STOP_SIGNALS:
        loop.add_signal_handler(each, stop)
    await stopped.wait()
