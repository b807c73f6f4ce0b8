"""The composition root: makes the parts, connects them, runs them, closes them."""

import asyncio
import contextlib
import signal
import socket
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from functools import partial
from secrets import token_hex
from typing import Any, cast

import structlog
import uvicorn
from starlette.middleware.cors import CORSMiddleware

from proxy.api.jobs import rendering
from proxy.api.jobs.operations import JobsApi
from proxy.api.openai import OpenAi
from proxy.api.status import StatusApp, error_body
from proxy.channel.connection import Reader
from proxy.channel.membership import Membership
from proxy.channel.protocol import WorkerProtocol
from proxy.channel.stock.channel import StockChannel
from proxy.channel.stock.posts import Posts
from proxy.channel.stock.roster import Roster
from proxy.channel.websocket import WorkerChannel
from proxy.delivery.deliveries import Deliveries
from proxy.delivery.guard import check_url
from proxy.delivery.sender import Sender
from proxy.delivery.signature import read_secret
from proxy.edge.crowd import Crowd, places
from proxy.edge.gate import Gate, RoomApp, WorkerRoom
from proxy.edge.guard import Door
from proxy.edge.memory import return_large_blocks
from proxy.edge.protocol import EdgeProtocol
from proxy.edge.routes import Room, Table
from proxy.jobs.model import Job, WorkerId
from proxy.service.background import Background, keep
from proxy.service.budget import Budget
from proxy.service.clock import Clock, SystemClock
from proxy.service.dispatch import Dispatch
from proxy.service.endpoints import Endpoints
from proxy.service.fleet import Fleet
from proxy.service.intake import Intake
from proxy.service.keys import Keys
from proxy.service.limits import Limits
from proxy.service.news import News
from proxy.service.orphans import Orphans
from proxy.service.output import Output
from proxy.service.ports import WorkerExit
from proxy.service.queue import Queue
from proxy.service.recorder import Recorder
from proxy.service.runs import Runs
from proxy.service.seal import Seal
from proxy.service.stuck import StuckWorkers
from proxy.service.sweeper import Sweeper
from proxy.settings import Settings
from proxy.store.base import JobStore
from proxy.store.memory import MemoryStore
from proxy.store.signal import LocalSignal
from proxy.store.sqlite.store import SqliteStore
from proxy.wire.frames import SOCKET_BYTES

log = structlog.get_logger()

EXPOSED_HEADERS = [
    *("x-request-id", "x-job-id", "x-should-retry", "retry-after", "retry-after-ms", "openai-processing-ms"),
    *(f"x-ratelimit-{what}-{of}" for what in ("limit", "remaining", "reset") for of in ("requests", "tokens")),
]
KEEP_ALIVE_SECONDS = 75
FLUSH_SECONDS = 2.0  # for the last bytes to reach the clients, once everything has ended
BACKLOG = 2048
ANSWER_BYTES = 256 * 1024 * 1024  # of whole answers on their way to clients
RESULT_BYTES = 128 * 1024 * 1024  # that stock workers post at once: two of the largest results
SWITCH_SECONDS = (
    0.0001  # shorter than a busy turn of the event loop: else the store's thread waits seconds for its turn
)
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@dataclass(frozen=True, slots=True)
class Parts:
    """The parts of one proxy, connected."""

    settings: Settings
    token: str = field(repr=False)
    endpoints: Endpoints
    fleet: Fleet
    output: Output
    dispatch: Dispatch
    runs: Runs
    intake: Intake
    store: JobStore
    orphans: Orphans
    queue: Queue
    recorder: Recorder
    background: Background
    stuck: StuckWorkers
    sweeper: Sweeper
    deliveries: Deliveries
    roster: Roster
    bodies: Budget
    answers: Budget
    door: Door
    app: Any  # the ASGI application

    def worker_exited(self, worker_exit: WorkerExit) -> None:
        """A worker process that was started here has ended: no need to wait for its lease."""
        worker = self.fleet.get(WorkerId(worker_exit.worker))
        if worker is not None:
            worker.has_exited = True  # the sweeper buries it in its next round


def compose(settings: Settings, clock: Clock | None = None) -> Parts:
    """Make the parts. Nothing runs yet and nothing is opened."""
    clock = clock or SystemClock()
    token = settings.token()
    keys = Keys(settings.keys(token))
    endpoints = Endpoints(settings.endpoints())
    store, fleet, output, news, background = _store(settings), Fleet(), Output(), News(), Background()
    recorder = Recorder(store, news)
    dispatch = Dispatch(store, LocalSignal(), fleet, output, recorder, news, clock)
    runs = Runs(store, fleet, output, recorder, news, dispatch, clock)
    orphans = Orphans(store, runs)
    intake = Intake(store, output, dispatch, runs, clock)
    limits = Limits(settings.limits(), settings.limit_per_worker, fleet.running, time.monotonic)
    queue = Queue(store, fleet, dispatch, runs, recorder, news, intake, clock)
    stuck = StuckWorkers(fleet, settings.stop_grace)
    sweeper = Sweeper(store, fleet, output, runs, orphans, stuck, clock, settings.lease)
    receivers, seal = settings.receivers(), Seal(settings.seal_key())
    check_webhook = partial(check_url, allowed=receivers)

    async def notice(job: Job) -> bytes:
        webhook = seal.open_webhook(job.submission.webhook or "")
        return rendering.notice(job, await queue.outputs(job), clock.now(), webhook)

    sender = Sender(read_secret(settings.signing_secret()), receivers, clock)
    deliveries = Deliveries(store, sender, notice, clock, open_webhook=seal.open_webhook)
    runs.on_delivery = deliveries.wake
    membership = Membership(endpoints, fleet, runs, output, recorder, orphans)
    channel = WorkerChannel(
        endpoints, dispatch, membership, lambda worker: Reader(worker, runs, output, recorder, background)
    )
    roster = Roster(fleet, runs, dispatch, recorder, orphans, background, settings.patience())
    posts, results = Posts(runs, output, recorder, roster), Budget(RESULT_BYTES)
    stock = StockChannel(endpoints, roster, posts, results, seal.open)
    bodies = Budget(settings.body_budget, settings.body_budget // (2 if len(settings.api_key) > 1 else 1))
    openai = OpenAi(endpoints, intake, limits, bodies, lambda: token_hex(12), settings.gaps())
    answers = Budget(ANSWER_BYTES)
    jobs = JobsApi(
        endpoints,
        fleet,
        store,
        queue,
        intake,
        limits,
        bodies,
        answers,
        clock,
        check_url=check_webhook,
        seal=seal,
    )
    status = StatusApp(endpoints, fleet, intake, store, jobs)
    rooms: dict[Room, RoomApp] = {
        Room.STATUS: status,
        Room.QUEUE: status,
        Room.OPENAI: openai,
        Room.STOCK: WorkerRoom(stock),
        Room.CHANNEL: WorkerRoom(channel),
    }
    gate = Gate(keys, Table(), rooms)
    door = Door(settings.hosts(), settings.pace(), Crowd(places(settings.max_connections)), error_body, gate.is_worker)
    app: Any = gate
    if settings.cors_origin:
        app = CORSMiddleware(
            app,
            allow_origins=settings.cors_origin,
            allow_methods=["GET", "POST", "DELETE", "HEAD", "OPTIONS"],
            allow_headers=["*"],  # names what the browser asks for
            expose_headers=EXPOSED_HEADERS,
            max_age=600,
        )
    return Parts(
        settings,
        token,
        endpoints,
        fleet,
        output,
        dispatch,
        runs,
        intake,
        store,
        orphans,
        queue,
        recorder,
        background,
        stuck,
        sweeper,
        deliveries,
        roster,
        bodies,
        answers,
        door,
        app,
    )


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


def _store(settings: Settings) -> JobStore:
    path = settings.store_file()
    return MemoryStore() if path is None else SqliteStore(path)


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
        http=cast("type[EdgeProtocol]", partial(EdgeProtocol, parts.door)),
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
        "crowd": parts.door.crowd.serve,
        "sweeper": parts.sweeper.serve,
        "roster": parts.roster.serve,
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
    parts.intake.refuse()
    await parts.intake.end_waiting()
    if not await parts.output.wait_empty(parts.settings.drain):
        log.warning("drain.cut", calls=len(parts.output))
        await parts.intake.end_running()
        await parts.output.wait_empty(FLUSH_SECONDS)
    parts.queue.let_go()
    for worker in parts.fleet:
        if worker.port is not None:
            worker.port.close("the proxy is shutting down")
    await parts.recorder.flush_all()
    await parts.background.finish(FLUSH_SECONDS)
    await parts.deliveries.drain(FLUSH_SECONDS)


async def until_signal() -> None:
    """Wait for SIGINT, SIGTERM or SIGHUP (the terminal was closed). A second one ends the process at once."""
    loop = asyncio.get_running_loop()
    stopped = asyncio.Event()

    def stop() -> None:
        stopped.set()
        for each in SIGNALS:
            loop.remove_signal_handler(each)

    for each in SIGNALS:
        loop.add_signal_handler(each, stop)
    await stopped.wait()
