"""The composition root: makes the parts and connects them. `serving` runs them."""

import asyncio
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from starlette.middleware.cors import CORSMiddleware

from proxy.access.body_budget import Budget
from proxy.access.encryption import Seal
from proxy.access.keys import Keys
from proxy.access.rate_limits import Limits
from proxy.api.app import StatusApp, error_body
from proxy.api.openai.app import OpenAi
from proxy.api.queue import response
from proxy.api.queue.app import JobsApi
from proxy.api.queue.listing import Listing
from proxy.channel.native.app import WorkerChannel
from proxy.channel.native.connection import Reader
from proxy.channel.native.membership import Membership
from proxy.channel.runpod.app import RunpodChannel
from proxy.channel.runpod.registry import WorkerRegistry
from proxy.channel.runpod.results import RunpodResults
from proxy.edge.connections import ConnectionLimiter, places
from proxy.edge.gate import BackendApp, Gate, WorkerBackend
from proxy.edge.guard import EdgeContext
from proxy.edge.origins import Origins
from proxy.edge.routes import Backend, Table
from proxy.jobs.ids import Ids
from proxy.jobs.model import Job, WorkerId
from proxy.service.background import Background
from proxy.service.dispatch import Dispatch
from proxy.service.durable import DurableJobs
from proxy.service.endings import RunEndings
from proxy.service.endpoints import Endpoints
from proxy.service.events import JobEvents
from proxy.service.fleet import Fleet
from proxy.service.interactive import InteractiveJobs
from proxy.service.mailbox import Mailboxes
from proxy.service.orphans import Orphans
from proxy.service.ports import WorkerExit
from proxy.service.recorder import Recorder
from proxy.service.stuck import StuckWorkers
from proxy.service.sweeper import Sweeper
from proxy.settings import Settings
from proxy.store.base import JobStore
from proxy.store.memory import MemoryStore
from proxy.store.signal import LocalSignal
from proxy.store.sqlite.store import SqliteStore
from proxy.system import System
from proxy.webhooks.deliveries import Deliveries
from proxy.webhooks.sender import Sender
from proxy.webhooks.signature import read_secret
from proxy.webhooks.url_policy import check_url

EXPOSED_HEADERS = [
    *(
        "x-request-id",
        "x-job-id",
        "x-should-retry",
        "retry-after",
        "retry-after-ms",
        "openai-processing-ms",
    ),
    *(
        f"x-ratelimit-{what}-{of}"
        for what in ("limit", "remaining", "reset")
        for of in ("requests", "tokens")
    ),
]
ANSWER_BYTES = 256 * 1024 * 1024  # of whole answers on their way to clients
RESULT_BYTES = 128 * 1024 * 1024  # that stock workers post at once: two of the largest results
PASSING_BYTES = (
    128 * 1024 * 1024
)  # of streams that stock workers have posted by more than 1 MB, until they are passed on


@dataclass(frozen=True, slots=True)
class Parts:
    """The parts of one proxy, connected."""

    settings: Settings
    token: str = field(repr=False)
    endpoints: Endpoints
    fleet: Fleet
    output: Mailboxes
    dispatch: Dispatch
    runs: RunEndings
    interactive: InteractiveJobs
    store: JobStore
    orphans: Orphans
    durable: DurableJobs
    recorder: Recorder
    events: JobEvents
    background: Background
    stuck: StuckWorkers
    sweeper: Sweeper
    deliveries: Deliveries
    registry: WorkerRegistry
    bodies: Budget
    answers: Budget
    passing: Budget
    edge: EdgeContext
    app: Any  # the ASGI application

    def worker_exited(self, worker_exit: WorkerExit) -> None:
        """A worker process that was started here has ended: no need to wait for its lease."""
        worker = self.fleet.get(WorkerId(worker_exit.worker))
        if worker is not None:
            worker.has_exited = True  # the sweeper buries it in its next round


def compose(
    settings: Settings, system: System | None = None, store: JobStore | None = None
) -> Parts:
    """Make the parts, with the configured store unless one is given. Nothing runs yet and nothing is opened."""
    system = system or System()
    clock = system.clock
    ids = Ids(system.random_bytes)
    token = settings.token()
    keys = Keys(settings.keys(token))
    endpoints = Endpoints(settings.endpoints())
    store = store or _store(settings, system)
    fleet, output, events, background = Fleet(), Mailboxes(), JobEvents(), Background()
    recorder = Recorder(store, events)
    dispatch = Dispatch(store, LocalSignal(), fleet, output, recorder, events, clock)
    runs = RunEndings(store, fleet, output, recorder, events, dispatch, clock)
    orphans = Orphans(store, runs)
    interactive = InteractiveJobs(store, output, dispatch, runs, clock, ids)
    limits = Limits(settings.limits(), settings.limit_per_worker, fleet.running, _loop_time)
    durable = DurableJobs(store, fleet, dispatch, runs, recorder, events, interactive, clock, ids)
    stuck = StuckWorkers(fleet, settings.stop_grace)
    sweeper = Sweeper(store, fleet, output, runs, orphans, stuck, clock, settings.lease)
    receivers, seal = settings.receivers(), Seal(settings.seal_key(), system.random_bytes)
    check_webhook = partial(check_url, allowed=receivers)

    async def notice(job: Job) -> bytes:
        webhook = seal.open_webhook(job.submission.webhook or "")
        found = await durable.outputs(job) if job.output is None else (job, ())
        # A retry takes the delivery back.
        if found is None or found[0].retry_count != job.retry_count:
            return b""
        return response.notice(job, found[1], clock.now(), webhook)

    sender = Sender(read_secret(settings.signing_secret()), receivers, clock)
    deliveries = Deliveries(store, sender, notice, clock, open_webhook=seal.open_webhook)
    runs.on_delivery = deliveries.wake
    membership = Membership(endpoints, fleet, runs, output, recorder, orphans)
    channel = WorkerChannel(
        endpoints,
        dispatch,
        membership,
        lambda worker: Reader(worker, runs, output, recorder, background),
    )
    registry = WorkerRegistry(
        fleet, runs, dispatch, recorder, orphans, background, settings.patience()
    )
    results, passing = Budget(RESULT_BYTES), Budget(PASSING_BYTES)
    posts = RunpodResults(runs, output, recorder, registry, passing)
    stock = RunpodChannel(endpoints, registry, posts, results, seal.open)
    bodies = Budget(
        settings.body_budget, settings.body_budget // (2 if len(settings.client_keys()) > 1 else 1)
    )
    answers = Budget(ANSWER_BYTES)
    openai = OpenAi(
        endpoints, interactive, limits, bodies, answers, ids.request, settings.intervals()
    )
    jobs = JobsApi(
        endpoints,
        Listing(store, fleet, durable, clock, seal),
        durable,
        interactive,
        limits,
        bodies,
        answers,
        clock,
        check_url=check_webhook,
        seal=seal,
    )
    status = StatusApp(endpoints, fleet, interactive, store, jobs)
    backends: dict[Backend, BackendApp] = {
        Backend.STATUS: status,
        Backend.QUEUE: status,
        Backend.OPENAI: openai,
        Backend.STOCK: WorkerBackend(stock),
        Backend.CHANNEL: WorkerBackend(channel),
    }
    table = Table()
    gate = Gate(keys, table, backends)
    edge = EdgeContext(
        settings.hosts(),
        settings.pace(),
        ConnectionLimiter(places(settings.max_connections)),
        error_body,
        gate.is_worker,
    )
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
    if not settings.api_key:
        app = Origins(app, gate.refuse, table, settings.cors_origin)
    return Parts(
        settings,
        token,
        endpoints,
        fleet,
        output,
        dispatch,
        runs,
        interactive,
        store,
        orphans,
        durable,
        recorder,
        events,
        background,
        stuck,
        sweeper,
        deliveries,
        registry,
        bodies,
        answers,
        passing,
        edge,
        app,
    )


def _store(settings: Settings, system: System) -> JobStore:
    path = settings.store_file()
    return MemoryStore() if path is None else SqliteStore(path, system.disk, system.start_runner)


def _loop_time() -> float:
    """The monotonic clock of the running event loop, in seconds."""
    return asyncio.get_running_loop().time()
