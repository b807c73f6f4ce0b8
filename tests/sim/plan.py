"""The plan of a simulation: everything that is drawn from its seed before it starts."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from random import Random
from typing import Any

LEASE_SECONDS = 6.0
EXECUTION_SECONDS = 20.0
# A run takes 4 s at most, and some time to be handed out and settled.
TOLERATED_DELAY_SECONDS = 13.0
# Seconds during which clients start and faults happen.
PLAY_SECONDS = 15.0
FIRST_CLIENT_SECONDS = 1.0
BURST_SECONDS = 0.5
CLIENT_KINDS = {
    "chat": 6,
    "chat_whole": 2,
    "chat_leave": 2,
    "chat_stall": 1,
    "run": 5,
    "stream": 4,
    "runsync": 2,
    "cancel": 3,
    "forget": 1,
    "chat_fault": 1,
    "cursor": 4,
    "retry": 3,
    "stream_leave": 2,
}
# These run until they are stopped.
ENDLESS_KINDS = ("chat_leave", "cancel")
ENDLESS_TOKENS = 100_000
# The reactions of the receiver of a webhook to the first delivery.
REACTIONS = ("acknowledge", "refuse", "reset", "hang")
WEBHOOK_SHARE = 0.3
LATE_OUTPUT = "head_delay:3000"
ENGINE_FAULTS = ("hang:2", "error_event:1", "cut:2", "status:503", LATE_OUTPUT)
FAULT_KINDS = {
    "kill_worker": 4,
    "drain_worker": 2,
    "stop_worker": 3,
    "kill_proxy": 3,
    "drain_proxy": 1,
    "stop_proxy": 1,
    "cut": 3,
    "flap": 4,
    "silence": 2,
    "block": 3,
    "store": 3,
    "crash": 2,
    "slow": 2,
    "clock": 2,
}
# The error of the wall clock, in hours: it changes while the proxy runs, or with a restart. The
# proxy cannot notice at its start that the clock is late, or less than 24 hours ahead.
CLOCK_HOURS = (30, 50, 1_000)
# The time from the end of the proxy to its start, where a fault consists of two restarts.
RESTART_SECONDS = 0.5
# The share of jobs with a secret for Runpod workers, and the weight of a start with another
# `seal-key`, where there is such a worker.
S3_SHARE = 0.2
SEAL_WEIGHT = 4
# The share of plans with a stock worker, and the time from a post of it to its last repetition.
STOCK_SHARE = 0.25
STOCK_REPEAT_SECONDS = 5.0
# A client, or a stock worker, notices after this time that its connection is silent.
SILENCE_SECONDS = 10.0
# The connections of a stock worker's next posts break, before or after the arrival of the posts.
CUT_POSTS_WEIGHT = 8
ALL_STATEMENTS = 1_000_000
# A run is delayed for as long as one of these lasts.
SLOWING = ("stop_worker", "stop_proxy", "block", "store", "slow")
RESTARTING = ("kill_proxy", "drain_proxy", "crash", "clock", "seal")
NEEDS_FILE = ("kill_proxy", "drain_proxy", "store", "crash", "clock", "seal")


@dataclass(frozen=True, slots=True)
class ClientPlan:
    """One client.

    `at`: seconds until it starts. `pause`: until it cancels, leaves or reads on. `fault`: what its
    request makes the engine do (see `worker_vllm.engine.script`). `webhook`: the reaction of the
    receiver of its webhook; empty without one. `has_s3`: its job has a secret.
    """

    name: str
    kind: str
    at: float
    owner: str
    tokens: int
    pace: float
    pause: float
    streams: bool
    fault: str = ""
    webhook: str = ""
    has_s3: bool = False


@dataclass(frozen=True, slots=True)
class Fault:
    """One fault. `seconds`: its duration, or until the restart. `pick` selects its target."""

    at: float
    kind: str
    pick: int
    seconds: float
    detail: str = ""
    times: int = 0

    @property
    def end(self) -> float:
        return self.at + self.seconds


@dataclass(frozen=True, slots=True)
class Plan:
    """See the module's docstring.

    `is_fifo`: the loop keeps the order of its handles. `slots`: those of the native workers.
    `stock_slots`: the jobs that the stock worker runs at once; 0 if there is none.
    """

    seed: int
    is_fifo: bool
    store: str
    # Mean seconds of one step of a thread; the commits of a slow disk take longer.
    thread_seconds: float
    latency_seconds: float
    slots: tuple[int, ...]
    stock_slots: int
    clients: tuple[ClientPlan, ...]
    faults: tuple[Fault, ...]

    @property
    def may_time_out(self) -> bool:
        """True if the faults can delay a healthy run beyond the time limit of a run."""
        delay = sum(map(_delay, self.faults))
        if self.stock_slots:
            delay += sum(map(_stock_delay, self.faults))
        return delay > TOLERATED_DELAY_SECONDS

    def to_json(self) -> str:
        return json.dumps(asdict(self), indent=1)


def _delay(fault: Fault) -> float:
    """Return the longest time for which a fault delays a run that goes on."""
    if fault.kind in ("kill_proxy", "drain_proxy", "crash"):
        return fault.seconds + LEASE_SECONDS
    if fault.kind == "silence":
        return LEASE_SECONDS
    if fault.kind in ("clock", "seal"):
        return 2 * (RESTART_SECONDS + LEASE_SECONDS)
    return fault.seconds if fault.kind in SLOWING else 0.0


def _stock_delay(fault: Fault) -> float:
    """Return by how much longer a fault delays a run of a stock worker."""
    match fault.kind:
        case "cut_posts":
            return fault.times * STOCK_REPEAT_SECONDS
        case "flap":
            return fault.seconds + STOCK_REPEAT_SECONDS
        case "silence":
            return STOCK_REPEAT_SECONDS + SILENCE_SECONDS
    return STOCK_REPEAT_SECONDS


def draw_plan(seed: int, kinds: dict[str, int] | None = None) -> Plan:
    """Return the plan of a seed. `kinds`: the possible faults and their weights."""
    random = Random(f"{seed} plan")
    store = "memory:" if random.random() < 0.2 else ""
    slots = tuple(random.choice((1, 1, 2, 4)) for _ in range(random.randint(2, 3)))
    # Clients come one by one, or many at once so that jobs wait in the queue.
    moments = [random.uniform(FIRST_CLIENT_SECONDS, PLAY_SECONDS) for _ in range(2)]
    is_bursty = random.random() < 0.5
    clients = tuple(
        _client(random, number, moments if is_bursty else [])
        for number in range(random.randint(15, 30))
    )
    thread_seconds = random.choice((0.0005, 0.0005, 0.005, 0.05))
    latency_seconds = random.choice((0.002, 0.02, 0.2))
    stock_slots = random.choice((1, 2, 4)) if random.random() < STOCK_SHARE else 0
    weights = dict(FAULT_KINDS if kinds is None else kinds)
    if stock_slots:
        weights |= {"cut_posts": CUT_POSTS_WEIGHT, "seal": SEAL_WEIGHT}
    if store:
        weights = {kind: weight for kind, weight in weights.items() if kind not in NEEDS_FILE}
    number = random.choice((0, 1, 1, 2, 3, 4, 6)) if weights else 0
    faults = sorted((_fault(random, weights) for _ in range(number)), key=lambda fault: fault.at)
    faults = [fault for fault in faults if fault.kind != "clock" or _is_noticed(fault, faults)]
    return Plan(
        seed=seed,
        is_fifo=seed % 4 == 0,
        store=store,
        thread_seconds=thread_seconds,
        latency_seconds=latency_seconds,
        slots=slots,
        stock_slots=stock_slots,
        clients=clients,
        faults=tuple(faults),
    )


def _is_noticed(clock: Fault, faults: Sequence[Fault]) -> bool:
    """Return True if the proxy starts only once with this wrong clock. It does not notice the clock
    at a second start, because of the records since the first one.
    """
    starts = [fault for fault in faults if fault is not clock and fault.kind in RESTARTING]
    moments = [moment for fault in starts for moment in (fault.at, fault.end)]
    end = clock.end + RESTART_SECONDS
    return not any(clock.at <= moment + RESTART_SECONDS and moment <= end for moment in moments)


def _client(random: Random, number: int, moments: Sequence[float]) -> ClientPlan:
    if moments:
        at = random.choice(moments) + random.uniform(0.0, BURST_SECONDS)
    else:
        at = random.uniform(FIRST_CLIENT_SECONDS, PLAY_SECONDS)
    kind = random.choices(list(CLIENT_KINDS), list(CLIENT_KINDS.values()))[0]
    return ClientPlan(
        name=f"c{number}",
        kind=kind,
        at=_rounded(at),
        owner=random.choice(("one", "two")),
        tokens=ENDLESS_TOKENS if kind in ENDLESS_KINDS else random.choice((1, 3, 5, 8, 12)),
        pace=0.1 if kind in ENDLESS_KINDS else random.choice((0.0, 0.02, 0.1, 0.3)),
        pause=_rounded(random.uniform(0.0, 2.0)),
        streams=random.random() < 0.5,
        fault=_engine_fault(random, kind),
        webhook=random.choice(REACTIONS) if random.random() < WEBHOOK_SHARE else "",
        has_s3=random.random() < S3_SHARE,
    )


def _engine_fault(random: Random, kind: str) -> str:
    if kind == "stream_leave":
        return LATE_OUTPUT
    return random.choice(ENGINE_FAULTS) if kind in ("chat_fault", "retry") else ""


def _fault(random: Random, weights: dict[str, int]) -> Fault:
    kind = random.choices(list(weights), list(weights.values()))[0]
    at = _rounded(random.uniform(FIRST_CLIENT_SECONDS, PLAY_SECONDS))
    pick = random.randrange(1_000)
    # Most faults are short; some outlast the lease.
    seconds = _rounded(random.choice((0.3, 1.0, 4.0, 8.0, 20.0)) * random.uniform(0.5, 1.2))
    more: dict[str, Any] = {}
    match kind:
        case "kill_worker" | "drain_worker" | "kill_proxy" | "drain_proxy" | "crash":
            seconds = _rounded(random.uniform(0.2, 8.0))
            if kind == "crash":
                more["detail"] = random.choice(("before", "after"))
        case "store":
            where = random.choice(("begin", "statement", "commit", "read"))
            code = random.choice(("full", "busy", "ioerr"))
            # Some statements fail, or all of them for a while.
            more = {"detail": f"{where} {code}", "times": random.choice((1, 3, 8, ALL_STATEMENTS))}
            seconds = _rounded(random.uniform(0.3, 8.0))
        case "flap":
            seconds = _rounded(random.uniform(0.5, 6.0))
            more["times"] = random.randint(2, 8)
        case "seal":
            seconds = _rounded(random.uniform(1.0, 8.0))
        case "clock":
            seconds = _rounded(random.uniform(1.0, 8.0))
            how = random.choice(("restart", "step"))
            more["detail"] = f"{how} {random.choice(CLOCK_HOURS)}"
        case "slow":
            more["detail"] = str(random.choice((0.2, 1.0)))
        case "cut_posts":
            seconds = 0.0
            more["times"] = random.randint(1, 4)
        case "cut" | "silence":
            seconds = 0.0
    return Fault(at, kind, pick, seconds, **more)


def _rounded(seconds: float) -> float:
    return round(seconds, 3)
