"""The processes of a simulation: a proxy, and workers below `worker_vllm.worker`.

Workers with Runpod's SDK are in `stock_worker.py`.
"""

import asyncio
import json
from abc import ABC, abstractmethod
from base64 import b64encode
from collections.abc import Callable
from contextvars import Context
from functools import partial
from pathlib import Path
from random import Random
from typing import Any

from proxy.app import Parts, compose
from proxy.jobs.model import Millis
from proxy.serving import running
from proxy.settings import Settings
from proxy.system import System
from proxy.wire.frames import Frame, Hello, JobFrame
from sim.loop import SimLoop
from sim.node import Node
from sim.store import FaultyReader, SimDisk, SimRunner, StoreFaults
from sim.transport import SimSocket
from worker_vllm.asgi import Receive, Scope, Send
from worker_vllm.channel.connection import Channel, ChannelTimeouts
from worker_vllm.channel.dial import Dialler, Handshake, Link
from worker_vllm.engine.base import read_models
from worker_vllm.engine.scripted import ScriptedEngine
from worker_vllm.engine.watchdog import watch
from worker_vllm.runtime import Runtime

ADDRESS = ("127.0.0.1", 8000)
# The receiver of webhooks.
RECEIVER = ("127.0.0.2", 9000)
TOKEN = "simulated-worker-token-of-enough-length"
KEYS = {"one": "key-of-owner-one-0123456789abcdef", "two": "key-of-owner-two-0123456789abcdef"}
OTHER_SEAL_KEY = b64encode(b"another key: 32 bytes of a plan.").decode()
EPOCH_MILLIS = 1_800_000_000_000
HEARTBEAT_SECONDS = 2.0
PROGRESS_SECONDS = 30.0
DRAIN_SECONDS = 5.0


class SimClock:
    """`Clock` of one process: the loop's time since a fixed date.

    `wall_seconds`: returns the error of the machine's wall clock. `now` has the error that it had
    at the start of the process.
    """

    def __init__(self, loop: SimLoop, wall_seconds: Callable[[], float]) -> None:
        self._loop = loop
        self._wall_seconds = wall_seconds
        self.start_seconds = wall_seconds()

    def now(self) -> Millis:
        return self._at(self.start_seconds)

    def wall(self) -> Millis:
        return self._at(self._wall_seconds())

    def _at(self, error: float) -> Millis:
        return Millis(EPOCH_MILLIS + int((self._loop.time() + error) * 1000))


class Machine(ABC):
    """A process that can be started again after its end."""

    def __init__(self, world: Any, name: str) -> None:
        self.world = world
        self.name = name
        self.node: Node | None = None
        # The parts of a proxy, once they are composed.
        self.parts: Parts | None = None
        self.stop_event: asyncio.Event | None = None
        self.task: asyncio.Task[Any] | None = None

    @property
    def is_up(self) -> bool:
        return self.task is not None and not self.task.done() and not self.is_dead

    @property
    def is_dead(self) -> bool:
        return self.node is not None and self.node.is_dead

    def start(self) -> None:
        """Start the process, unless it runs."""
        if self.is_up:
            return
        self.world.trace(f"start {self.name}")
        self.parts = None
        self.node = Node(self.name)
        self.world.nodes.append(self.node)
        self.stop_event = asyncio.Event()
        self.task = self.node.start(self.world.loop, self.run(self.stop_event))
        self.task.add_done_callback(partial(self._ended, self.node), context=Context())

    def _ended(self, node: Node, task: "asyncio.Task[Any]") -> None:
        """Let the process end with its main task."""
        if node.is_dead:
            return
        node.kill()
        if not task.cancelled() and (error := task.exception()) is not None:
            self.world.violate(f"bug: {self.name} ended with {error!r}")

    def terminate(self) -> None:
        """Send the process SIGTERM."""
        if self.stop_event is not None and self.node is not None and self.is_up:
            self.node.is_ending = True
            self.world.loop.call_soon(self.stop_event.set, context=self.node.context.copy())

    @abstractmethod
    async def run(self, stop: asyncio.Event) -> None:
        """Run the process until `stop` is set."""


class ProxyMachine(Machine):
    """A proxy whose data outlives its process."""

    def __init__(self, world: Any, folder: Path, settings: dict[str, Any], random: Random) -> None:
        super().__init__(world, "proxy")
        values: dict[str, Any] = {
            "data_dir": folder,
            "worker_token": TOKEN,
            "webhook_secret": "whsec_" + "c2ltdWxhdGVkLXNlY3JldC1vZi0zMi1ieXRlcy0hIQ==",
            "api_key": [f"{owner}={key}" for owner, key in KEYS.items()],
            "webhook_allow": [RECEIVER[0]],
        }
        self._settings = Settings(**(values | settings))
        self._random = random
        self._disk = SimDisk()
        self.faults = StoreFaults(trace=world.trace)
        # The first content of its file `seal-key`, once another one is set.
        self._seal_key = ""
        # The error of the wall clock, in seconds.
        self.wall_seconds = 0.0
        self.clock = SimClock(world.loop, self._wall_seconds)

    def set_seal_key(self, *, is_other: bool) -> None:
        """Set the key with which the next process opens secrets: another one, or the first one."""
        path = self._settings.seal_key_file()
        self._seal_key = self._seal_key or path.read_text()
        path.write_text(OTHER_SEAL_KEY if is_other else self._seal_key)

    def _wall_seconds(self) -> float:
        return self.wall_seconds

    @property
    def is_durable(self) -> bool:
        return self._settings.store != "memory:"

    async def run(self, stop: asyncio.Event) -> None:
        loop = self.world.loop
        self.clock = SimClock(loop, self._wall_seconds)
        system = System(
            clock=self.clock,
            random_bytes=self._random.randbytes,
            disk=self._disk,
            start_runner=lambda step: SimRunner(loop, step, self.faults),
        )
        self.parts = compose(self._settings, system)
        listener: Any = SimSocket(ADDRESS)
        async with running(self.parts, listener):
            if self.is_durable:
                store: Any = self.parts.store
                reader = store._database._reader
                reader._db = FaultyReader(reader._db, self.faults)
            await stop.wait()


class RunNamingApp:
    """An engine's app whose tokens name the run that they belong to."""

    def __init__(self, engine: ScriptedEngine, worker: str) -> None:
        self._engine = engine
        self._worker = worker
        self._runs = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        first = await receive()
        if scope["path"] in ("/v1/chat/completions", "/v1/completions"):
            self._runs += 1
            first = {**first, "body": self._named(first["body"])}
        messages = [first]

        async def received() -> Any:
            return messages.pop() if messages else await receive()

        await self._engine.serve(scope, received, send)

    def _named(self, body: bytes) -> bytes:
        request = json.loads(body)
        run = f"{self._worker}r{self._runs}"
        if "messages" in request:
            request["messages"][-1]["content"] += f" {run}"
        else:
            request["prompt"] += f" {run}"
        return json.dumps(request).encode()


class SimEngine(ScriptedEngine):
    """The scripted engine with tokens `"<message> <run> <index> "`."""

    __slots__ = ("naming",)

    @property
    def app(self) -> Any:
        return self.naming


class TracedRuntime(Runtime):
    """A runtime that traces its frames."""

    world: Any = None
    name = ""

    def receive(self, origin: Any, frame: Any) -> None:
        self.world.frame(self.name, "<", frame)
        super().receive(origin, frame)

    def sent(self, origin: Any, frames: Any) -> None:
        for frame in frames:
            self.world.frame(self.name, ">", frame)
        super().sent(origin, frames)


class WorkerMachine(Machine):
    """A worker with its own engine."""

    def __init__(self, world: Any, name: str, slots: int, random: Random) -> None:
        super().__init__(world, name)
        self.slots = slots
        self._random = random
        self._starts = 0
        self.engine: ScriptedEngine | None = None
        self.runtime: Runtime | None = None

    async def run(self, stop: asyncio.Event) -> None:
        """Do what `worker_vllm.worker` does once its engine is ready."""
        loop = self.world.loop
        self._starts += 1
        label = f"{self.name}s{self._starts}"
        ids = iter(range(10**9))
        engine = SimEngine(
            slots=self.slots,
            stage=self.world.trace,
            clock=loop.time,
            new_id=lambda: f"{label}-{next(ids)}",
        )
        engine.naming = RunNamingApp(engine, label)
        self.engine = engine
        models = await read_models(engine)
        async with asyncio.TaskGroup() as group:
            runtime = TracedRuntime(self.name, engine, models, self.slots, group)
            runtime.world = self.world
            runtime.name = label
            self.runtime = runtime
            link = Link(f"ws://{ADDRESS[0]}:{ADDRESS[1]}/v2/default/worker", TOKEN, self.name)
            channel = Channel(
                link,
                runtime,
                ChannelTimeouts(HEARTBEAT_SECONDS),
                Dialler(Handshake, self._random.uniform),
            )
            connecting = group.create_task(channel.run())
            watching = group.create_task(watch(engine, runtime, PROGRESS_SECONDS))
            stopping = group.create_task(stop.wait())
            await asyncio.wait(
                [connecting, watching, stopping], return_when=asyncio.FIRST_COMPLETED
            )
            if watching.done():
                gone = watching.result()
                self.world.trace(f"gone {self.name} {gone.code}")
                await runtime.lose_all(gone.code, gone.message)
                await channel.close(1011, gone.code)
            else:
                await runtime.drain(DRAIN_SECONDS)
                await channel.close(1001, "drained")
            for task in (connecting, watching, stopping):
                task.cancel()


def describe(frame: Frame | Hello) -> str:
    """Return a frame as the trace shows it."""
    kind = type(frame).__name__
    if not isinstance(frame, JobFrame):
        return kind
    size = len(getattr(frame, "data", b""))
    ending = getattr(frame, "ending", "")
    return f"{kind} {frame.job} {frame.attempt} {ending or size}"
