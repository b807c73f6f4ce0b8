"""The composition root: makes the parts of one proxy and connects them. `serving` runs them."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from starlette.middleware.cors import CORSMiddleware

from proxy.access.encryption import Seal
from proxy.access.keys import Keys
from proxy.access.limits import Budget, ClientLimits, Limits
from proxy.api.app import StatusApp
from proxy.api.openai.app import OpenAi
from proxy.api.openai.checks import CallChecks
from proxy.api.openai.fast_lane import FastLane
from proxy.api.openai.retries import KEPT_BUDGET_BYTES, Retries
from proxy.api.queue import response
from proxy.api.queue.app import JobOperations, JobsApi
from proxy.api.queue.listing import Listing
from proxy.api.queue.request import OrderReader
from proxy.channel.native.app import WorkerChannel
from proxy.channel.native.membership import Membership
from proxy.channel.runpod.app import RunpodChannel
from proxy.channel.runpod.models import RunpodModels
from proxy.channel.runpod.post_budget import PostBudget
from proxy.channel.runpod.registry import WorkerRegistry
from proxy.channel.runpod.results import RunpodResults
from proxy.edge.connections import ConnectionLimiter, max_client_connections
from proxy.edge.context import EdgeContext
from proxy.edge.gate import Backend, BackendApp, Gate, Table, WorkerBackend
from proxy.edge.origins import Origins
from proxy.jobs.model import Ids, Job, Millis, WorkerId
from proxy.service.admission import Admission
from proxy.service.background import Background
from proxy.service.clock import Clock
from proxy.service.clock_check import ClockCheck
from proxy.service.dispatch import Dispatch
from proxy.service.durable import DurableJobs, DurableRuns
from proxy.service.endpoints import Endpoints
from proxy.service.events import JobEvents, LocalSignal
from proxy.service.fleet import Fleet
from proxy.service.interactive import InteractiveJobs
from proxy.service.job_view import JobView
from proxy.service.json_text import INLINE_MAX_BYTES
from proxy.service.orphans import Orphans
from proxy.service.pauses import Pauses
from proxy.service.ports import WorkerExit
from proxy.service.queue_watch import QueueWatch
from proxy.service.recorder import Recorder
from proxy.service.served_models import ServedModels
from proxy.service.stuck import StuckWorkers
from proxy.service.sweeper import DurableSweeper, Sweeper
from proxy.settings import Settings
from proxy.store.base import JobStore
from proxy.store.memory import MemoryStore
from proxy.store.sqlite.store import SqliteStore
from proxy.system import System
from proxy.webhooks.deliveries import Deliveries
from proxy.webhooks.sender import Sender
from proxy.webhooks.signature import read_secret
from proxy.webhooks.url_policy import check_url
from proxy.wire.fields import TO_CLIENT

EXPOSED_HEADERS = (
    "x-request-id",
    "x-job-id",
    *(name.decode() for name in sorted(TO_CLIENT)),
    "openai-processing-ms",
    "x-ratelimit-limit-requests",
    "x-ratelimit-limit-tokens",
    "x-ratelimit-remaining-requests",
    "x-ratelimit-remaining-tokens",
    "x-ratelimit-reset-requests",
    "x-ratelimit-reset-tokens",
)
# Whole answers on their way to clients.
ANSWERS_MAX_BYTES = 256 * 1024 * 1024
# Posts of Runpod workers with more than 1 MB of a stream, until they have been passed on.
PASSING_MAX_BYTES = 128 * 1024 * 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class Parts:
    """The parts of one proxy, connected. `app` is the ASGI application behind the edge.

    `is_seal_key_new`: there was no `seal-key`, so one has been generated.
    """

    settings: Settings
    is_seal_key_new: bool
    token: str = field(repr=False)
    endpoints: Endpoints
    fleet: Fleet
    dispatch: Dispatch
    runs: DurableRuns
    admission: Admission
    interactive: InteractiveJobs
    store: JobStore
    orphans: Orphans
    view: JobView
    durable: DurableJobs
    recorder: Recorder
    events: JobEvents
    background: Background
    stuck: StuckWorkers
    clock_check: ClockCheck
    sweeper: Sweeper
    queue_watch: QueueWatch
    served_models: ServedModels
    durable_sweeper: DurableSweeper
    deliveries: Deliveries
    registry: WorkerRegistry
    bodies: Budget
    answers: Budget
    passing: Budget
    retries: Retries
    edge: EdgeContext
    app: Any

    def worker_exited(self, worker_exit: WorkerExit) -> None:
        """Note that a worker process that was started here has ended, so that its lease need not
        expire first.
        """
        worker = self.fleet.get(WorkerId(worker_exit.worker))
        if worker is not None:
            worker.has_exited = True


def compose(
    settings: Settings, system: System | None = None, store: JobStore | None = None
) -> Parts:
    """Return the parts, with the configured store unless one is given. Nothing runs and nothing is
    opened yet.
    """
    system = system or System()
    store = store or _store(settings, system)
    clock = system.clock
    ids = Ids(system.random_bytes)
    is_seal_key_new = not settings.seal_key_file().exists()
    seal = Seal(settings.seal_key(), system.random_bytes)
    token = settings.token()
    endpoints = Endpoints(settings.endpoints())
    background = Background()
    served_models = ServedModels(endpoints, store)
    endpoints.on_change = served_models.note

    # Jobs and workers
    fleet = Fleet(LocalSignal())
    events = JobEvents()
    recorder = Recorder(store, events)
    runs = DurableRuns(store, recorder, events, fleet, background, clock)
    interactive = InteractiveJobs(store, fleet, events, clock, ids)
    dispatch = Dispatch(fleet, interactive, runs, store, background, ids)
    fleet.has_queued = dispatch.has_queued
    orphans = Orphans(store, runs, fleet, ids, clock)
    admission = Admission(store, interactive)
    view = JobView(store, interactive, recorder, events, fleet, clock)
    interactive.reason_of = view.reason
    durable = DurableJobs(store, runs, view, clock, ids)
    stuck = StuckWorkers(fleet, settings.stop_grace)
    pauses = Pauses()
    clock_check = ClockCheck(store, clock, Millis(int(settings.clock_grace * 1000)))
    sweeper = Sweeper(interactive, fleet, stuck, pauses, settings.lease)
    queue_watch = QueueWatch(endpoints, fleet, clock, (interactive, store))
    durable_sweeper = DurableSweeper(runs, orphans, pauses, clock_check, settings.lease)

    # Webhooks
    receivers = settings.receivers()
    sender = Sender(read_secret(settings.signing_secret()), receivers, clock)
    notice = _notice(view, seal, clock)
    deliveries = Deliveries(store, sender, notice, clock, open_webhook=seal.open_webhook)
    runs.on_delivery = deliveries.wake

    # Channels of workers
    membership = Membership(endpoints, fleet, orphans, background, settings.lease)
    native = WorkerChannel(endpoints, fleet, membership, clock)
    registry = WorkerRegistry(fleet, orphans, pauses, settings.runpod_timeouts())
    for restart in (fleet.restart_leases, orphans.restart_lease, registry.restart_leases):
        pauses.then(restart)
    passing = Budget(PASSING_MAX_BYTES)
    results = RunpodResults(fleet, recorder, registry, passing)
    runpod = RunpodChannel(endpoints, registry, results, PostBudget(), seal.open)

    # APIs of clients
    limits = ClientLimits(
        Limits(settings.limits(), settings.limit_per_worker, fleet.running),
        Budget(settings.body_budget, _share(settings.body_budget, settings)),
        Budget(ANSWERS_MAX_BYTES, _share(ANSWERS_MAX_BYTES, settings)),
    )
    checks = CallChecks(
        endpoints,
        admission,
        limits,
        settings.intervals(),
        RunpodModels(endpoints, fleet, interactive, background),
    )
    openai = OpenAi(
        endpoints,
        interactive,
        checks,
        ids.request,
        Retries(
            interactive,
            Budget(KEPT_BUDGET_BYTES, _share(KEPT_BUDGET_BYTES, settings)),
            settings.retry_grace,
        ),
        clock,
    )
    operations = JobOperations(
        view,
        durable,
        interactive,
        admission,
        clock,
        OrderReader(partial(check_url, allowed=receivers), seal),
    )
    table = Table()

    # The edge
    backends: dict[Backend, BackendApp] = {
        Backend.STATUS: StatusApp(endpoints, fleet, admission, view, table.render_error),
        Backend.QUEUE: JobsApi(endpoints, limits, operations, Listing(view, fleet, clock, seal)),
        Backend.OPENAI: openai,
        Backend.STOCK: WorkerBackend(runpod),
        Backend.CHANNEL: WorkerBackend(native),
    }
    gate = Gate(Keys(settings.keys(token)), table, backends)
    return Parts(
        settings=settings,
        is_seal_key_new=is_seal_key_new,
        token=token,
        endpoints=endpoints,
        fleet=fleet,
        dispatch=dispatch,
        runs=runs,
        admission=admission,
        interactive=interactive,
        store=store,
        orphans=orphans,
        view=view,
        durable=durable,
        recorder=recorder,
        events=events,
        background=background,
        stuck=stuck,
        clock_check=clock_check,
        sweeper=sweeper,
        queue_watch=queue_watch,
        served_models=served_models,
        durable_sweeper=durable_sweeper,
        deliveries=deliveries,
        registry=registry,
        bodies=limits.bodies,
        answers=limits.answers,
        passing=passing,
        retries=openai.retries,
        edge=EdgeContext(
            settings.hosts(),
            settings.pace(),
            ConnectionLimiter(max_client_connections(settings.max_connections)),
            table.render_error,
            gate.is_worker,
            # Responses to web pages have further header fields.
            FastLane(
                gate.admit,
                checks,
                dispatch,
                interactive,
                ids.request,
                openai,
            )
            if settings.fast_lane == "on" and not settings.cors_origin
            else None,
        ),
        app=_guarded(gate, table, settings),
    )


def _guarded(gate: Gate, table: Table, settings: Settings) -> Any:
    """Return the gate behind the rules for web pages: CORS, and without a key the check of the
    origin.
    """
    app: Any = gate
    if settings.cors_origin:
        app = CORSMiddleware(
            app,
            allow_origins=settings.cors_origin,
            allow_methods=["GET", "POST", "DELETE", "HEAD", "OPTIONS"],
            # The middleware answers with the names that the browser asks for.
            allow_headers=["*"],
            expose_headers=EXPOSED_HEADERS,
            max_age=600,
            # Chrome asks before a public page calls an address of a private network.
            allow_private_network=True,
        )
    if not settings.client_keys():
        app = Origins(app, gate.refuse, table, settings.cors_origin)
    return app


def _notice(view: JobView, seal: Seal, clock: Clock) -> Callable[[Job], Awaitable[bytes]]:
    """Return the function that renders the body of a webhook; an empty body if a retry has
    withdrawn the delivery.
    """

    async def notice(job: Job) -> bytes:
        webhook = seal.open_webhook(job.submission.webhook or "")
        elements: Sequence[bytes] = ()
        if job.output is None:
            found = await view.result(job.endpoint, job.submission.owner, job.id, _reserve)
            if found is None or found[0].retry_count != job.retry_count:
                return b""
            elements = found[1]
        if sum(map(len, elements)) > INLINE_MAX_BYTES:
            return await asyncio.to_thread(response.notice, job, elements, clock.now(), webhook)
        return response.notice(job, elements, clock.now(), webhook)

    async def _reserve(_: int) -> None:
        """Reserve nothing: the deliveries have their own limit of bytes."""

    return notice


def _share(budget: int, settings: Settings) -> int:
    """Return the bytes of a budget that one owner may hold: half of all, where there are several
    owners.
    """
    return budget // (2 if len(settings.owners()) > 1 else 1)


def _store(settings: Settings, system: System) -> JobStore:
    path = settings.store_file()
    return MemoryStore() if path is None else SqliteStore(path, system.disk, system.start_runner)
