"""The clients of a simulation, and the checks of what each of them sees."""

import asyncio
import json
from dataclasses import dataclass, field
from typing import Any

from proxy.jobs.policy import MAX_LOST_RUNS
from sim.http_client import BrokenError, Response, request, send
from sim.machines import RECEIVER
from sim.plan import ENDLESS_KINDS, LATE_OUTPUT, ClientPlan
from sim.tokens import fault_of, read_tokens, texts

FINAL = ("COMPLETED", "FAILED", "CANCELLED", "TIMED_OUT")
SUBMIT_TRIES = 5
RETRY_SECONDS = 1.0
POLL_SECONDS = 0.4
CONSUMERS = ("stream", "stream_leave")
# Together these are shorter than the delay of the first output of a job of the kind `stream_leave`:
# the longest submission, the longest call of `stream`, and until the end of its connection arrives.
SUBMISSION_SECONDS = 0.7
LEAVE_SECONDS = 1.0
ARRIVAL_SECONDS = 1.0
# In the error of a job whose secret was encrypted with another `seal-key`.
UNREADABLE = "cannot be decrypted"
OK, NOT_FOUND, INTERNAL = 200, 404, 500


@dataclass(slots=True)
class SeenJob:
    """A durable job whose id a client has received.

    `submitted_at`: the time of its request. `end`: the final status that the client has seen.
    """

    id: str
    plan: ClientPlan
    submitted_at: float
    end: str = ""
    ended_at: float = 0.0
    # It was cancelled before it had a final status.
    is_cancelled: bool = False
    retries: int = 0


@dataclass(slots=True)
class Client:
    """One client. `jobs` has the jobs of all clients."""

    world: Any
    plan: ClientPlan
    jobs: list[SeenJob]
    # Consumed elements may have been lost with a response.
    has_lost: bool = field(default=False)

    async def play(self) -> None:
        """Do everything that this client does."""
        try:
            if self.plan.kind.startswith("chat"):
                await self._chat()
            else:
                await self._durable()
        except BrokenError as error:
            self._note(f"broken: {error}")
            if not error.is_excused:
                self.world.violate(f"{self.plan.name}: {error}, without a fault")
        except TimeoutError:
            self.world.violate(f"{self.plan.name}: no final answer")

    def _note(self, text: str) -> None:
        self.world.trace(f"client {self.plan.name} {text}")

    def _check(self, text: str, *, is_whole: bool) -> None:
        plan = self.plan
        try:
            fault = fault_of(
                read_tokens(text),
                plan.name,
                total=plan.tokens,
                is_whole=is_whole,
                may_skip=self.has_lost,
            )
        except ValueError as error:
            fault = str(error)
        if fault is not None:
            self.world.violate(f"{plan.name} {plan.kind}: {fault}")

    def _refused(self, status: int, body: Any) -> None:
        """Note an error response. It needs a fault, and is never a bug of the server."""
        self._note(f"status {status} {json.dumps(body)[:160]}")
        self.world.errors += 1
        if "execution_timeout" in json.dumps(body):
            check_timeout(self.world, self.plan)
        is_expected = self.world.has_faults or bool(self.plan.fault)
        # The engine of a stock worker has failed, and the error names no status.
        is_engine_error = bool(self.plan.fault) and "engine_error" in json.dumps(body)
        if (status == INTERNAL and not is_engine_error) or not is_expected:
            self.world.violate(f"{self.plan.name} {self.plan.kind}: {status} {body}")

    # Interactive jobs

    async def _chat(self) -> None:
        plan = self.plan
        is_stream = plan.kind != "chat_whole"
        response = await request(
            "POST", "/v1/chat/completions", plan.owner, self._chat_body(stream=is_stream)
        )
        if response.status != OK:
            self._refused(response.status, await response.json())
            return
        if is_stream:
            await self._read_events(response)
            return
        answer = await response.json()
        self._note("whole")
        self._check(answer["choices"][0]["message"]["content"], is_whole=True)

    def _chat_body(self, *, stream: bool = True) -> dict[str, Any]:
        plan = self.plan
        return {
            "model": "scripted",
            "stream": stream,
            "max_tokens": plan.tokens,
            "seed": int(plan.pace * 1e6),
            "messages": [{"role": "user", "content": plan.name}],
            "fault": plan.fault if plan.kind == "chat_fault" else None,
        }

    async def _read_events(self, response: Response) -> None:
        plan = self.plan
        text, rest, end = "", "", ""
        async for piece in response.pieces():
            *events, rest = (rest + piece.decode()).split("\n\n")
            for event in map(_without_comments, events):
                data = event.removeprefix("data: ")
                if end == "done" or (end == "error" and data != "[DONE]"):
                    self.world.violate(f"{plan.name}: after the end: {event}")
                if data == "[DONE]":
                    # It also follows an error.
                    end = end or "done"
                elif (value := json.loads(data)).get("error") is not None:
                    self._refused(OK, value)
                    end = "error"
                else:
                    text += value["choices"][0]["delta"].get("content") or ""
            self._check(text, is_whole=False)
            if text and plan.kind == "chat_leave":
                await asyncio.sleep(plan.pause / 4)
                self._note("leaves")
                response.abort()
                return
            if text and plan.kind == "chat_stall":
                await asyncio.sleep(plan.pause)
        response.close()
        self._note(f"stream {end or 'cut'}")
        if not end:
            self.world.violate(f"{plan.name}: a stream without an end")
        self._check(text, is_whole=end == "done")

    # Durable jobs

    async def _durable(self) -> None:
        plan = self.plan
        job = await self._submit()
        if job is None or plan.kind == "forget":
            return
        if plan.kind == "cancel":
            await asyncio.sleep(plan.pause)
            answer = await self._call("POST", f"cancel/{job.id}", job)
            job.is_cancelled = answer.get("status") == "CANCELLED"
        if plan.kind == "stream_leave":
            await self._leave(job)
        if plan.kind in CONSUMERS:
            await self._consume(job)
        elif plan.kind == "cursor":
            await self._read_on(job)
        elif plan.kind == "retry":
            await self._retry(job)
        await self._until_end(job)

    async def _until_end(self, job: SeenJob) -> None:
        while not job.end:
            await self._call("GET", f"status/{job.id}", job)
            await asyncio.sleep(POLL_SECONDS)

    async def _submit(self) -> SeenJob | None:
        """Submit a job; return it once its id has arrived."""
        plan = self.plan
        sampling = {"max_tokens": plan.tokens, "seed": int(plan.pace * 1e6)}
        streams = plan.streams or plan.kind in ("stream", "cursor")
        value: Any = {"prompt": plan.name, "sampling_params": sampling, "stream": streams}
        if plan.fault:
            # The first run of a `retry` fails, unless it is lost before.
            body = self._chat_body() | {"fault": plan.fault}
            value = {"openai_route": "/v1/chat/completions", "openai_input": body}
        order = {"input": value}
        if plan.has_s3:
            order["s3Config"] = {"accessId": plan.name}
        if plan.webhook:
            order["webhook"] = f"http://{RECEIVER[0]}:{RECEIVER[1]}/{plan.webhook}/{plan.name}"
        operation = "runsync" if plan.kind == "runsync" else "run"
        for _ in range(SUBMIT_TRIES):
            now = asyncio.get_running_loop().time()
            try:
                response = await request("POST", f"/v2/default/{operation}", plan.owner, order)
                answer = await response.json()
            except BrokenError as error:
                if not error.is_excused:
                    raise
                self._note(f"submit broken: {error}")
            else:
                if response.status == OK:
                    self._note(f"job {answer['id']} {answer['status']}")
                    job = SeenJob(answer["id"], plan, now)
                    self.jobs.append(job)
                    self._see(job, answer)
                    return job
                self._refused(response.status, answer)
            await asyncio.sleep(RETRY_SECONDS)
        return None

    async def _consume(self, job: SeenJob) -> None:
        """Read the job's output as it appears, each element once."""
        text = ""
        while True:
            answer = await self._call("GET", f"stream/{job.id}", job)
            text += texts(answer["stream"])
            self._check(text, is_whole=False)
            if answer["status"] in FINAL and not answer["stream"]:
                break
            if not answer["stream"]:
                await asyncio.sleep(POLL_SECONDS)
        self._check(text, is_whole=answer["status"] == "COMPLETED")

    async def _leave(self, job: SeenJob) -> None:
        """Call `stream` and leave before the first output exists."""
        if asyncio.get_running_loop().time() > job.submitted_at + SUBMISSION_SECONDS:
            return
        try:
            connection = await send("GET", f"/v2/default/stream/{job.id}", self.plan.owner)
        except BrokenError as error:
            self._note(f"stream/{job.id} broken: {error}")
            return
        await asyncio.sleep(min(self.plan.pause, LEAVE_SECONDS))
        self._note("leaves")
        connection.abort()
        await asyncio.sleep(ARRIVAL_SECONDS)
        # Otherwise the proxy knows that its client has left.
        self.has_lost = connection.link.is_disturbed or connection.link.server.node.is_stopped

    async def _read_on(self, job: SeenJob) -> None:
        """Read the job's output from a cursor, which consumes nothing."""
        text = ""
        cursor = 0
        while True:
            answer = await self._call("GET", f"stream/{job.id}?after={cursor}", job)
            text += texts(answer["stream"])
            cursor += len(answer["stream"])
            self._check(text, is_whole=False)
            if answer["status"] in FINAL and not answer["stream"]:
                break
            if not answer["stream"]:
                await asyncio.sleep(POLL_SECONDS)
        self._check(text, is_whole=answer["status"] == "COMPLETED")

    async def _retry(self, job: SeenJob) -> None:
        """Submit the job again if it has failed."""
        await self._until_end(job)
        if job.end not in ("FAILED", "TIMED_OUT"):
            return
        path = f"/v2/default/retry/{job.id}"
        job.end = ""
        job.retries += 1
        try:
            response = await request("POST", path, self.plan.owner)
            answer = await response.json()
        except BrokenError as error:
            if not error.is_excused:
                raise
            self._note(f"retry broken: {error}")
            return
        self._note(f"retry {response.status} {answer}")
        if response.status != OK:
            self._refused(response.status, answer)

    async def _call(self, method: str, operation: str, job: SeenJob) -> Any:
        """Send a request about a job until it is answered."""
        while True:
            try:
                response = await request(method, f"/v2/default/{operation}", self.plan.owner)
                answer = await response.json()
            except BrokenError as error:
                if not error.is_excused:
                    raise
                self.has_lost = self.plan.kind in CONSUMERS
                self._note(f"{operation} broken: {error}")
            else:
                if response.status == OK:
                    self._see(job, answer)
                    return answer
                self._refused(response.status, answer)
                if response.status == NOT_FOUND:
                    self.world.violate(f"I1: job {job.id} of {self.plan.name} is unknown")
                    return {"status": "FAILED", "stream": []}
                self.has_lost = self.plan.kind in CONSUMERS
            await asyncio.sleep(RETRY_SECONDS)

    def _see(self, job: SeenJob, answer: Any) -> None:
        """Check a job's status and output, as a response shows them."""
        status = answer["status"]
        self._note(f"sees {job.id} {status}")
        check_view(self.world, job, answer)
        if status in FINAL and not job.end:
            job.end = status
            job.ended_at = asyncio.get_running_loop().time()


def _without_comments(event: str) -> str:
    """Return an event without the heartbeats before it."""
    return "\n".join(line for line in event.split("\n") if not line.startswith(":"))


def check_timeout(world: Any, plan: ClientPlan) -> None:
    """Note a run that has reached its time limit without a reason."""
    is_endless = plan.kind in ENDLESS_KINDS or bool(plan.fault)
    if not world.may_time_out and not is_endless:
        world.violate(f"I6: {plan.name} {plan.kind} has timed out without a reason")


def check_view(world: Any, job: SeenJob, answer: Any) -> None:
    """Check a job against everything that was seen of it before."""
    status = answer["status"]
    if job.end and status != job.end:
        world.violate(f"I2: job {job.id} was {job.end} and is {status}")
    if job.is_cancelled and status != "CANCELLED":
        world.violate(f"I2: job {job.id} was cancelled and is {status}")
    if answer.get("retries", 0) > MAX_LOST_RUNS:
        world.violate(f"I5: job {job.id} has lost {answer['retries']} runs")
    if status not in FINAL or "executionTime" not in answer:
        # Only `status` and `runsync` show the output.
        return
    if status == "TIMED_OUT":
        check_timeout(world, job.plan)
    has_other_key = world.has_other_seal_key and job.plan.has_s3
    if UNREADABLE in answer.get("error", "") and not has_other_key:
        world.violate(f"job {job.id} has failed without a reason: {answer['error']}")
    try:
        tokens = read_tokens(texts(answer.get("output")))
        is_whole = status == "COMPLETED" and job.plan.fault in ("", LATE_OUTPUT)
        fault = fault_of(tokens, job.plan.name, total=job.plan.tokens, is_whole=is_whole)
    except ValueError as error:
        fault = str(error)
    if fault is not None:
        world.violate(f"job {job.id} {status}: {fault}")
