"""A worker with Runpod's SDK, as a script of the SDK's requests (version 1.12).

The names of the SDK's functions are in the docstrings. The handler is the one of `worker_vllm`.
"""

import asyncio
import json
from collections.abc import AsyncGenerator
from contextlib import aclosing
from contextvars import Context
from random import Random
from typing import Any
from urllib.parse import quote

from sim.http_client import BrokenError, Connection, Session
from sim.machines import DRAIN_SECONDS, Machine, RunNamingApp, SimEngine
from sim.tokens import STOCK
from worker_vllm.engine.scripted import SERVED_NAME
from worker_vllm.handler import answer_input
from worker_vllm.inputs.gauges import Gauges
from worker_vllm.inputs.rendering import Output
from worker_vllm.runpod_sdk.runtime import _stream

# Its setting `RUNPOD_PING_INTERVAL`, shorter than the default as the proxy's timeouts are.
PING_SECONDS = 1.0
PING_RETRY_SECONDS = (0.0, 2.0, 4.0)
POLL_TIMEOUT_SECONDS = 90.0
# Between two tries of a post.
POST_RETRY_SECONDS = (2.0, 3.0)
FULL_SECONDS = 1.0
NO_STOP_SECONDS = 1.0
TOO_MANY_SECONDS = 5.0
# The SDK does not wait after a failed poll. This bounds the events of a simulation.
POLL_RETRY_SECONDS = 0.2
# The greatest time from the arrival of a job to its start.
START_SECONDS = 0.1
OK, NO_CONTENT, TOO_MANY, SERVER_ERROR, BAD_GATEWAY, UNAVAILABLE = 200, 204, 429, 500, 502, 503


class EngineOutputs:
    """In place of `EngineThread`: the answers of an engine on this loop."""

    def __init__(self, engine: SimEngine, gauges: Gauges) -> None:
        self._engine = engine
        self._gauges = gauges

    def answer(self, raw: bytes) -> AsyncGenerator[Output, None]:
        return answer_input(self._engine, self._gauges, raw, SERVED_NAME, "seed")


class StockMachine(Machine):
    """A stock worker with its own engine.

    `slots`: the jobs that it runs at once. A broken connection fails a post for good, unless an
    HTTP server in front of the proxy makes a 502 of it, which the SDK repeats.
    """

    def __init__(self, world: Any, slots: int, random: Random) -> None:
        super().__init__(world, STOCK)
        self.slots = slots
        self._random = random
        self._is_behind_front = random.random() < 0.5
        self._starts = 0
        self._http = Session()
        # The number of next posts whose connection breaks.
        self.cut_posts = 0
        self.engine: SimEngine | None = None
        # The jobs that it has taken and not ended, in the order of their arrival.
        self.jobs: dict[str, None] = {}
        # The tasks of those that it has started.
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._handler: Any = None

    async def run(self, stop: asyncio.Event) -> None:
        """Do what the SDK does in `JobScaler.run`, and in the process of `Heartbeat.ping_loop`."""
        self._starts += 1
        label = f"{self.name}{self._starts}"
        ids = iter(range(10**9))
        self.engine = SimEngine(
            slots=self.slots,
            stage=self.world.trace,
            clock=self.world.loop.time,
            new_id=lambda: f"{label}-{next(ids)}",
        )
        self.engine.naming = RunNamingApp(self.engine, label)
        gauges = Gauges(self.engine.read, self.world.loop.time)
        outputs: Any = EngineOutputs(self.engine, gauges)
        self._handler = _stream(outputs)
        self._http = Session(self._posted)
        self.jobs = {}
        self._tasks = {}
        async with asyncio.TaskGroup() as group:
            polls = [
                group.create_task(self._take_jobs(group, stop)),
                group.create_task(self._stop_jobs(stop)),
            ]
            pings = group.create_task(self._ping())
            await stop.wait()
            await asyncio.wait([*polls, *self._tasks.values()], timeout=DRAIN_SECONDS)
            # The end of the container, whose ping process would go on.
            for task in (*polls, *self._tasks.values(), pings):
                task.cancel()

    async def _take_jobs(self, group: asyncio.TaskGroup, stop: asyncio.Event) -> None:
        """Do what `JobScaler.get_jobs` does, with a constant concurrency."""
        while not stop.is_set():
            wanted = self.slots - len(self.jobs)
            if wanted <= 0:
                await asyncio.sleep(FULL_SECONDS)
                continue
            query = f"&job_in_progress={int(bool(self.jobs))}"
            if wanted == 1:
                status, body = await self._poll("job-take", query)
            else:
                status, body = await self._poll("job-take-batch", f"&batch_size={wanted}{query}")
            taken = json.loads(body) if status == OK else []
            for job in taken if isinstance(taken, list) else [taken]:
                self.world.trace(f"stock takes {job['id']}")
                if job["id"] in self.jobs:
                    self.world.violate(f"I3: {self.name} has {job['id']} and receives it again")
                self.jobs[job["id"]] = None
                if not stop.is_set():
                    # `run_jobs` has ended otherwise.
                    group.create_task(self._run(job))
            if status == TOO_MANY:
                await asyncio.sleep(TOO_MANY_SECONDS)

    async def _stop_jobs(self, stop: asyncio.Event) -> None:
        """Do what `JobScaler.monitor_stop_signals` does."""
        while not stop.is_set():
            status, body = await self._poll("job-stop", "")
            stopped = json.loads(body)["jobsToStop"] if status == OK else []
            for job_id in stopped:
                if (task := self._tasks.get(job_id)) is not None:
                    self.world.trace(f"stock stops {job_id}")
                    task.cancel()
            if status == TOO_MANY:
                await asyncio.sleep(TOO_MANY_SECONDS)
            elif not stopped:
                await asyncio.sleep(NO_STOP_SECONDS)

    async def _poll(self, verb: str, query: str) -> tuple[int, bytes]:
        """Poll once; return the status and the body, or a status of 0 if the poll has failed."""
        try:
            async with asyncio.timeout(POLL_TIMEOUT_SECONDS):
                return await self._request(self._http, "GET", verb, f"{self.name}?gpu=any{query}")
        except (BrokenError, TimeoutError):
            await asyncio.sleep(POLL_RETRY_SECONDS)
            return 0, b""

    async def _ping(self) -> None:
        """Do what the process of `Heartbeat.ping_loop` does, and the retries of its session."""
        http = Session()
        while True:
            jobs = f"&job_id={quote(','.join(self.jobs))}" if self.jobs else ""
            for seconds in (0.0, *PING_RETRY_SECONDS):
                await asyncio.sleep(seconds)
                try:
                    async with asyncio.timeout(2 * PING_SECONDS):
                        name = f"{self.name}?gpu=any{jobs}"
                        status, _ = await self._request(http, "GET", "ping", name)
                except (BrokenError, TimeoutError):
                    continue
                if status == OK:
                    break
            await asyncio.sleep(PING_SECONDS)

    async def _run(self, job: Any) -> None:
        """Do what `JobScaler.handle_job` and `handle_job` in `rp_job.py` do."""
        job_id = job["id"]
        task = asyncio.current_task()
        assert task is not None
        try:
            await asyncio.sleep(self._random.uniform(0.0, START_SECONDS))
            self._tasks[job_id] = task
            # With `return_aggregate_stream`.
            outputs: list[Any] = []
            result: dict[str, Any] = {"output": outputs}
            async with aclosing(self._handler(job)) as values:
                async for value in values:
                    if isinstance(value, dict) and value.get("error"):
                        result = {"error": str(value["error"])}
                        break
                    outputs.append(value)
                    await self._post("job-stream", job_id, {"output": value}, is_stream="false")
            await self._post("job-done", job_id, result, is_stream="true")
        finally:
            self.jobs.pop(job_id, None)
            self._tasks.pop(job_id, None)

    async def _post(self, verb: str, job_id: str, body: Any, *, is_stream: str) -> None:
        """Post until it is answered or given up, as `_transmit` in `rp_http.py` does."""
        target = f"{self.name}/{job_id}?gpu=any&isStream={is_stream}"
        for seconds in (*POST_RETRY_SECONDS, 0.0):
            try:
                status, _ = await self._request(self._http, "POST", verb, target, body)
            except BrokenError:
                if not self._is_behind_front:
                    break
                status = BAD_GATEWAY
            if status < SERVER_ERROR:
                return
            await asyncio.sleep(seconds)
        self.world.trace(f"stock gives up {verb} {job_id}")

    def _posted(self, connection: Connection) -> None:
        """Let the connection of a post break, if that is due."""
        if self.cut_posts:
            self.cut_posts -= 1
            link = connection.link
            seconds = self._random.uniform(0.0, 2 * link.mean)
            self.world.loop.call_later(seconds, link.reset, context=Context())

    async def _request(
        self, http: Session, method: str, verb: str, target: str, body: Any = None
    ) -> tuple[int, bytes]:
        try:
            status, content = await http.request(method, f"/v2/default/{verb}/{target}", body)
        except BrokenError as error:
            self.world.trace(f"stock {verb} {target} broken: {error}")
            if not error.is_excused:
                self.world.violate(f"{self.name}: {error}, without a fault")
            raise
        self.world.trace(f"stock {verb} {target} {status}")
        if status not in (OK, NO_CONTENT, TOO_MANY, UNAVAILABLE):
            self.world.violate(f"{self.name}: {verb} {target} has the status {status}")
        return status, content
