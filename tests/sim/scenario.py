"""One simulation from its plan to the verdict."""

import asyncio
from contextvars import Context
from dataclasses import dataclass
from functools import partial
from math import ceil
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from proxy.jobs.model import Counts, EndpointId
from proxy.service.mailbox import STALL_SECONDS
from sim.clients import Client, SeenJob
from sim.loop import StuckError
from sim.machines import Machine, ProxyMachine, WorkerMachine
from sim.node import Node
from sim.oracle import check_end, unrest
from sim.plan import (
    EXECUTION_SECONDS,
    LEASE_SECONDS,
    PLAY_SECONDS,
    RESTART_SECONDS,
    SILENCE_SECONDS,
    Fault,
    Plan,
)
from sim.receiver import Receiver
from sim.stock_worker import StockMachine
from sim.tokens import STOCK
from sim.world import World

# The last client may start its job at the end, and needs this long for it.
LAST_JOB_SECONDS = 10.0
LIMIT_SECONDS = LEASE_SECONDS + EXECUTION_SECONDS + 5.0 + LAST_JOB_SECONDS
# A delivery of a webhook that times out, the pause after it, and the next one.
DELIVERY_SECONDS = 25.0
SHARED_MEMORY = Path("/dev/shm")
LOOK_SECONDS = 0.5
# The effects of a fault on what is in flight end in this time.
CALM_SECONDS = 2.0


@dataclass(frozen=True, slots=True)
class Result:
    """The outcome of a simulation."""

    violations: list[str]
    lines: list[str]
    handles: int
    seconds: float
    errors: int


def _limit_seconds(plan: Plan) -> float:
    """Return the longest time from the last fault until everything is quiet."""
    limit = LIMIT_SECONDS
    # A run of a hanging engine has its slot until its time limit; a retry is a second such run.
    full_runs = sum(
        2 if client.kind == "retry" else 1
        for client in plan.clients
        if client.fault.startswith("hang")
    )
    # So has an endless job that is not cancelled because the response with its id was lost.
    full_runs += any(client.kind in ("retry", "cancel") for client in plan.clients)
    # The worker with the most slots may be the one that is down.
    slots = sum(plan.slots) - max(plan.slots)
    limit += EXECUTION_SECONDS * ceil(full_runs / slots)
    if any(fault.kind == "silence" for fault in plan.faults):
        # A write to a client whose network drops everything fails after this time.
        limit += STALL_SECONDS
    if any(client.webhook for client in plan.clients):
        limit += DELIVERY_SECONDS
    return limit


class Scenario:
    """The machines and clients of one simulation."""

    def __init__(self, world: World, plan: Plan, folder: Path) -> None:
        self._world = world
        self._plan = plan
        settings: dict[str, Any] = {
            "lease": LEASE_SECONDS,
            "execution_timeout": EXECUTION_SECONDS,
            "drain": 3.0,
            "poll_hold": 2.0,
            "ping_lease": LEASE_SECONDS,
            "line_gap": 2.0,
        }
        if plan.store:
            settings["store"] = plan.store
        self.proxy = ProxyMachine(world, folder, settings, world.draw("ids"))
        self.workers: list[WorkerMachine | StockMachine] = [
            WorkerMachine(world, f"w{number}", slots, world.draw(f"worker {number}"))
            for number, slots in enumerate(plan.slots)
        ]
        self.receiver = Receiver(world, self.proxy)
        self._stock = StockMachine(world, plan.stock_slots, world.draw("stock"))
        if plan.stock_slots:
            self.workers.append(self._stock)
        self.jobs: list[SeenJob] = []
        self._down: dict[str, float] = {}
        world.has_faults = bool(plan.faults)
        world.may_time_out = plan.may_time_out
        world.has_other_seal_key = any(fault.kind == "seal" for fault in plan.faults)
        world.loop.thread_seconds = plan.thread_seconds
        world.network.latency_seconds = plan.latency_seconds

    async def play(self) -> None:
        """Play the plan, wait until everything is quiet, and check the end."""
        loop = self._world.loop
        await self.receiver.start()
        machines = [self.proxy, *self.workers]
        for machine in machines:
            machine.start()
        clients = [
            asyncio.create_task(self._client(Client(self._world, plan, self.jobs)))
            for plan in self._plan.clients
        ]
        for fault in self._plan.faults:
            loop.call_at(fault.at, self._inject, fault, context=Context())
        limit = _limit_seconds(self._plan)
        last = max([PLAY_SECONDS, *(fault.end for fault in self._plan.faults)])
        why = ["not begun"]
        while loop.time() < last or (why and loop.time() < last + limit):
            await asyncio.sleep(LOOK_SECONDS)
            for machine in machines:
                if not machine.is_up and loop.time() >= self._down.get(machine.name, 0.0):
                    machine.start()
            why = unrest(self, [client for client in clients if not client.done()])
            ended = [job for job in self.jobs if job.plan.webhook and job.end]
            why += filter(None, map(self.receiver.missing, ended))
        for reason in why:
            self._world.violate(f"I6: not quiet {limit:g} s after the last fault: {reason}")
        if not why:
            await Node("oracle").start(loop, check_end(self))
        for client in clients:
            client.cancel()

    @property
    def world(self) -> World:
        return self._world

    def counts(self) -> Counts:
        """Return the proxy's count of durable jobs."""
        store: Any = None if self.proxy.parts is None else self.proxy.parts.store
        counts: Counts = store._index.counts(EndpointId("default"))
        return counts

    async def _client(self, client: Client) -> None:
        await asyncio.sleep(client.plan.at)
        node = Node(client.plan.name)
        await node.start(self._world.loop, client.play())

    def _inject(self, fault: Fault) -> None:
        """Carry out one fault."""
        self._world.trace(f"fault {fault.kind} {fault.pick} {fault.seconds} {fault.detail}")
        if fault.kind != "clock":
            self._expect_calm(fault.end)
        worker = self.workers[fault.pick % len(self.workers)]
        action, _, target = fault.kind.partition("_")
        machine = self.proxy if target == "proxy" else worker
        match action:
            case "kill":
                self._kill(machine, fault.end)
            case "drain":
                self._drain(machine, fault)
            case "stop":
                self._stop(machine, fault)
            case "block":
                self._world.network.block(worker.name, self.proxy.name, fault.seconds)
            case "flap":
                for number in range(fault.times):
                    delay = fault.seconds * number / fault.times
                    self._world.loop.call_later(delay, self._reset, worker, context=Context())
            case "cut" if target == "posts":
                self._stock.cut_posts = fault.times
            case "cut" | "silence":
                self._cut(fault)
            case _:
                self._inject_into_proxy(fault)

    def _expect_calm(self, after: float) -> None:
        self._world.calm_at = max(self._world.calm_at, after + CALM_SECONDS)

    def _inject_into_proxy(self, fault: Fault) -> None:
        """Carry out a fault of the proxy's store, threads or clock."""
        loop = self._world.loop
        match fault.kind:
            case "store":
                faults = self.proxy.faults
                faults.where, faults.code = fault.detail.split()
                faults.times = fault.times
                loop.call_later(fault.seconds, faults.heal, context=Context())
            case "slow":
                loop.thread_seconds = float(fault.detail)
                loop.call_later(fault.seconds, self._speed_up, context=Context())
            case "clock":
                how, hours = fault.detail.split()
                self._set_clock(how, 3600.0 * float(hours))
                loop.call_later(fault.seconds, self._set_clock, how, 0.0, context=Context())
            case "seal":
                self._set_seal_key(is_other=True)
                restore = partial(self._set_seal_key, is_other=False)
                loop.call_later(fault.seconds, restore, context=Context())
            case "lie":
                self.proxy.faults.lies = fault.times
            case "crash":
                self.proxy.faults.kill = fault.detail
                self._down[self.proxy.name] = fault.end

    def _kill(self, machine: Machine, until: float) -> None:
        self._down[machine.name] = until
        if machine.node is not None and machine.is_up:
            machine.node.kill()

    def _speed_up(self) -> None:
        self._world.loop.thread_seconds = self._plan.thread_seconds

    def _set_clock(self, how: str, seconds: float) -> None:
        """Set the error of the proxy's wall clock; "restart" kills the proxy too.

        A proxy that was started with a wrong clock has to be restarted when the clock is right.
        """
        self._world.trace(f"clock {how} {seconds}")
        self.proxy.wall_seconds = seconds
        self._expect_calm(self._world.loop.time())
        if how == "restart" or (not seconds and self.proxy.clock.start_seconds):
            self._restart_proxy()

    def _set_seal_key(self, *, is_other: bool) -> None:
        self._world.trace(f"seal {is_other}")
        self.proxy.set_seal_key(is_other=is_other)
        self._restart_proxy()

    def _restart_proxy(self) -> None:
        self._kill(self.proxy, self._world.loop.time() + RESTART_SECONDS)

    def _drain(self, machine: Machine, fault: Fault) -> None:
        self._down[machine.name] = fault.end
        machine.terminate()

    def _stop(self, machine: Machine, fault: Fault) -> None:
        node = machine.node
        if node is not None:
            node.is_stopped = True
            self._world.loop.call_later(
                fault.seconds, self._world.loop.resume, node, context=Context()
            )

    def _reset(self, machine: Machine) -> None:
        """Break all connections of a machine."""
        for connection in tuple(self._world.network.connections.values()):
            if machine.name in connection.nodes:
                connection.reset()

    def _cut(self, fault: Fault) -> None:
        connections = list(self._world.network.connections.values())
        if not connections:
            return
        # Half of the time a worker's connection.
        if fault.pick % 2:
            names = {worker.name for worker in self.workers}
            connections = [one for one in connections if names & set(one.nodes)] or connections
        connection = connections[fault.pick // 2 % len(connections)]
        self._world.trace(f"cut {connection} {fault.kind}")
        if fault.kind == "cut":
            connection.reset()
            return
        connection.is_silent = True
        if connection.nodes[0].startswith(("c", STOCK)):
            self._world.loop.call_later(
                SILENCE_SECONDS, connection.client.vanish, context=Context()
            )


def simulate(plan: Plan, *, logs: bool = False) -> Result:
    """Play a plan and return the outcome."""
    world = World(plan.seed, is_fifo=plan.is_fifo, logs=logs)
    base = SHARED_MEMORY if SHARED_MEMORY.is_dir() else None
    with TemporaryDirectory(dir=base) as folder, world.running():
        scenario = Scenario(world, plan, Path(folder))
        try:
            world.loop.run_until_complete(scenario.play())
        except StuckError as error:
            world.violate(str(error))
    return Result(
        world.violations, world.lines, world.loop.handles, world.loop.time(), world.errors
    )
