"""The scene of a race: a proxy, scripted workers, one client, and the checks of all counters."""

from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from random import Random
from typing import Any, NamedTuple

from proxy.app import Parts
from proxy.jobs.model import Counts, EndpointId
from proxy.wire.frames import Credit, Job
from sim.clients import FINAL, INTERNAL, OK
from sim.http_client import Call, prepare
from sim.machines import EPOCH_MILLIS, ProxyMachine
from sim.node import Node
from sim.oracle import unrest
from sim.puppet import Answer, PuppetWorker, eventually, nothing
from sim.world import World

OWNER = "one"
# Longer than every time that passes at once.
LEASE_SECONDS = 3_600.0
# The time limits of calls.
CALL_QUEUE_SECONDS = 20.0
CALL_RUN_SECONDS = 60.0


class Still(Random):
    """A network without latency: what is sent arrives whole, in the next turn of the loop."""

    def uniform(self, a: float, b: float) -> float:  # noqa: ARG002 - of the base class
        return 0.0

    def random(self) -> float:
        return 1.0

    def choice(self, seq: Any) -> Any:
        return seq[-1]


class Reply(NamedTuple):
    """The status and the body of a response."""

    status: int
    body: Any


class Scene:
    """A proxy, its scripted workers, and one client, which sends all requests."""

    def __init__(self, world: World, folder: Path) -> None:
        self.world = world
        self.node = Node("client")
        world.network.random = Still()
        settings = {
            "lease": LEASE_SECONDS,
            "queue_timeout": CALL_QUEUE_SECONDS,
            "execution_timeout": CALL_RUN_SECONDS,
        }
        self.proxy = ProxyMachine(world, folder, settings, world.draw("ids"))
        self.workers: list[PuppetWorker] = []
        self._number = 0
        # The ends of durable jobs and of calls.
        self._ends: Counter[str] = Counter()
        self._calls: Counter[str] = Counter()

    @property
    def parts(self) -> Parts:
        assert self.proxy.parts is not None
        return self.proxy.parts

    def expect(self, condition: object, text: str) -> None:
        """Note a violation unless the condition is true."""
        if not condition:
            self.world.violate(text)

    async def start(self) -> None:
        """Start the proxy, and wait until it listens."""
        self.proxy.start()
        await eventually(lambda: bool(self.world.network._listeners))

    async def restart(self) -> None:
        """Kill the proxy, and start it again."""
        assert self.proxy.node is not None
        self.proxy.node.kill()
        self.workers.clear()
        await self.start()

    # Workers

    def enter(self, name: str = "", answer: Answer = nothing) -> PuppetWorker:
        """Return a worker that is not connected yet. By default it has a new name."""
        self._number += 1
        worker = PuppetWorker(name or f"w{self._number}", answer)
        self.workers.append(worker)
        return worker

    async def join(self, slots: int, answer: Answer = nothing) -> PuppetWorker:
        """Return a new worker that the proxy knows."""
        worker = self.enter(answer=answer)
        await worker.connect()
        worker.say(worker.hello(), Credit(slots, 0))
        await eventually(lambda: any(one.id == worker.name for one in self.parts.fleet))
        return worker

    def dismiss(self, worker: PuppetWorker) -> None:
        """Let a worker leave."""
        worker.leave()
        self.workers.remove(worker)

    async def dismiss_all(self) -> None:
        """Let all workers leave, and wait until the proxy knows that."""
        for worker in tuple(self.workers):
            self.dismiss(worker)
        await eventually(lambda: not list(self.parts.fleet))

    # The client

    async def prepare(self, method: str, operation: str, body: Any = None) -> Call:
        """Open the connection for a request of the queue API."""
        return await prepare(method, f"/v2/default/{operation}", OWNER, body)

    async def reply(self, call: Call) -> Reply:
        """Wait for the response to a request."""
        response = await call.response()
        body = await response.json()
        self.expect(response.status != INTERNAL, f"bug: {response.status} {body}")
        return Reply(response.status, body)

    async def call(self, method: str, operation: str, body: Any = None) -> Reply:
        """Send a request of the queue API, and wait for its response."""
        call = await self.prepare(method, operation, body)
        call.send()
        return await self.reply(call)

    async def run(self, **policy: int) -> str:
        """Submit a job; return its id."""
        reply = await self.call("POST", "run", {"input": 1, "policy": policy})
        self.expect(reply.status == OK, f"run: {reply}")
        job: str = reply.body["id"]
        return job

    async def begin(self, **policy: int) -> tuple[str, PuppetWorker]:
        """Submit a job; return its id, and the new worker that has received it."""
        worker = await self.join(1)
        job = await self.run(**policy)
        await worker.until(Job, job)
        return job, worker

    async def shown(self, job: str) -> Any:
        """Return a job as `status` shows it."""
        return (await self.call("GET", f"status/{job}")).body

    async def end(self, job: str) -> Any:
        """Wait for the end of a job; return it as `status` shows it."""
        await eventually(lambda: self.status(job) in FINAL)
        return await self.shown(job)

    # The file

    def _sql(self, sql: str, *parameters: Any) -> list[Any]:
        store: Any = self.parts.store
        rows: list[Any] = store._database._reader._db.execute(sql, parameters).fetchall()
        return rows

    def status(self, job: str) -> str:
        """Return the status of a job in the file, or an empty string if there is none."""
        rows = self._sql("SELECT status FROM jobs WHERE id = ?", job)
        return rows[0][0] if rows else ""

    def outputs(self, job: str) -> int:
        """Return the number of outputs of a job in the file."""
        sql = "SELECT count(*) FROM outputs JOIN jobs ON job = number WHERE id = ?"
        found: int = self._sql(sql, job)[0][0]
        return found

    def kept_until(self, job: str) -> float:
        """Return the event loop's time at which the retention of a job ends."""
        sql = "SELECT finished_at + retention FROM jobs WHERE id = ?"
        found: int = self._sql(sql, job)[0][0]
        return (found - EPOCH_MILLIS) / 1000

    # The counters

    def counts(self) -> Counts:
        """Return the proxy's count of durable jobs."""
        store: Any = self.parts.store
        counts: Counts = store._index.counts(EndpointId("default"))
        return counts

    async def check_quiet(self, ends: Iterable[str], calls: Iterable[str]) -> None:
        """Wait until nothing runs, and compare all counters with these new ends of durable jobs
        and of calls, and the earlier ones.
        """
        try:
            await eventually(lambda: not unrest(self, []))
        except TimeoutError:
            self.world.violate(f"not quiet: {unrest(self, [])}")
            return
        self._ends.update(ends)
        self._calls.update(calls)
        expected = tuple(self._ends[status] for status in FINAL)
        counts = self.counts()
        counted = (counts.completed, counts.failed, counts.cancelled, counts.timed_out)
        stored = dict(self._sql("SELECT name, number FROM ended"))
        found = tuple(stored.get(status, 0) for status in FINAL)
        self.expect(
            expected == counted == found, f"{expected} ends, counted {counted}, stored {found}"
        )
        both = self._ends + self._calls
        jobs = (await self.call("GET", "health")).body["jobs"]
        shown = (jobs["completed"], jobs["failed"], jobs["inQueue"], jobs["inProgress"])
        self.expect(
            shown == (both["COMPLETED"], both["FAILED"], 0, 0), f"health {jobs}, expected {both}"
        )
