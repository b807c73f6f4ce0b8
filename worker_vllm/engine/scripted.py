"""An engine for tests and benchmarks that speaks the OpenAI API at a set pace; see `script.py` for what it plays."""

import asyncio
import json
import os
import signal
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Self
from uuid import uuid4

from worker_vllm.asgi import App, Receive, Scope, Send
from worker_vllm.engine.base import Reading
from worker_vllm.engine.events import STREAM_END, answer, error_event, stream_frame
from worker_vllm.engine.script import (
    BadRequestError,
    Kind,
    Script,
    asks_to_hang,
    error_body,
    read_script,
)
from worker_vllm.log import Stage

DEFAULT_SLOTS = 256
BREATH = 64  # tokens between two looks at the loop, when there is no pace: a cancel must get in
LATE_SECONDS = 0.0005  # tokens that are due this soon leave together; timers are no finer
SERVED_NAME = "scripted"
_GENERATE: dict[str, Kind] = {"/v1/chat/completions": "chat", "/v1/completions": "completion"}
_ENGINE_GONE = "EngineCore encountered an issue. See stack trace (above) for the root cause."


class _CutError(Exception):
    """The script says that the answer breaks off here."""


@dataclass(slots=True)
class ScriptedEngine:
    """See `Engine`. Its faults are asked for by the requests themselves."""

    served_name: str = SERVED_NAME
    slots: int = DEFAULT_SLOTS
    stage: Stage = print
    kill_process: Callable[[], None] = field(default=lambda: os.kill(os.getpid(), signal.SIGKILL))
    clock: Callable[[], float] = field(default=time.monotonic)  # finer than the event loop's
    new_id: Callable[[], str] = field(default=lambda: uuid4().hex)
    name: str = "scripted"
    authorization: str = field(default="", repr=False)
    dead: bool = False
    failure: str = "the engine died"
    running: int = 0
    prompt_tokens: int = 0
    generation_tokens: int = 0

    @property
    def app(self) -> App:
        return self.serve

    def fields(self, path: str) -> frozenset[str]:  # noqa: ARG002 - no route can be asked
        return frozenset()

    async def read(self) -> Reading | None:
        return Reading(self.running, 0, 0.0, self.prompt_tokens, self.generation_tokens)

    def progress(self) -> int:
        return self.prompt_tokens + self.generation_tokens

    def kill(self) -> None:
        self.dead = True

    async def __aenter__(self) -> Self:
        self.stage("starting the scripted engine")
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.dead = True

    async def serve(self, scope: Scope, receive: Receive, send: Send) -> None:
        """The ASGI app."""
        path: str = scope["path"]
        kind = _GENERATE.get(path)
        if kind is not None and scope["method"] == "POST":
            await self._generate(kind, receive, send)
            return
        if scope["method"] == "POST" and asks_to_hang((await receive()).get("body", b"")):
            await receive()  # until the caller has left
            return
        status, content_type, body = self._plain(path)
        await _reply(send, status, body, content_type)

    def _plain(self, path: str) -> tuple[int, str, bytes]:
        match path:
            case "/health":
                return (503 if self.dead else 200), "application/json", b""
            case "/metrics":
                return 200, "text/plain; version=0.0.4; charset=utf-8", self._metrics()
            case "/version":
                return 200, "application/json", b'{"version":"scripted"}'
            case "/v1/models":
                card = {
                    "id": self.served_name,
                    "object": "model",
                    "created": 0,
                    "owned_by": "vllm",
                    "parent": None,
                }
                return (
                    200,
                    "application/json",
                    json.dumps({"object": "list", "data": [card]}).encode(),
                )
            case "/tokenize":
                return (
                    200,
                    "application/json",
                    b'{"count":1,"max_model_len":1048576,"tokens":[0],"token_strs":null}',
                )
            case "/detokenize":
                return 200, "application/json", b'{"prompt":"token"}'
            case "/v1/messages/count_tokens":
                return 200, "application/json", b'{"input_tokens":1}'
            case _:
                return 404, "application/json", error_body("Not Found", "NotFoundError", 404)

    def _metrics(self) -> bytes:
        labels = f'{{engine="0",model_name="{self.served_name}"}}'
        rows = (
            ("num_requests_running", "gauge", self.running),
            ("prompt_tokens_total", "counter", self.prompt_tokens),
            ("generation_tokens_total", "counter", self.generation_tokens),
        )
        lines = [
            f"# TYPE vllm:{name} {kind}\nvllm:{name}{labels} {float(value)}\n"
            for name, kind, value in rows
        ]
        return "".join(lines).encode()

    async def _generate(self, kind: Kind, receive: Receive, send: Send) -> None:
        body = (await receive()).get("body", b"")
        try:
            script = read_script(body, kind, self.served_name, self.new_id())
        except BadRequestError as error:
            await _reply(send, 400, error_body(str(error)))
            return
        if self.dead:
            await _reply(send, 500, error_body(_ENGINE_GONE, "InternalServerError", 500))
            return
        self.running += 1
        playing = asyncio.ensure_future(self._play(script, send))
        leaving = asyncio.ensure_future(receive())
        try:
            await asyncio.wait({playing, leaving}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            leaving.cancel()
            playing.cancel()  # no more than a word when it is through
            await _ended(playing, leaving)
            self.running -= 1
        if not playing.cancelled():
            playing.result()

    async def _play(self, script: Script, send: Send) -> None:
        self.prompt_tokens += script.prompt_tokens
        if script.fault == "status":
            await _reply(
                send,
                script.fault_at,
                error_body("scripted", "InternalServerError", script.fault_at),
            )
            return
        if script.fault == "head_delay":
            await asyncio.sleep(script.fault_at / 1000)
        if not script.stream:
            await self._tokens(script, None)
            await _reply(send, 200, answer(script))
            return
        await _start(send, 200, "text/event-stream; charset=utf-8")
        if await self._tokens(script, send):
            await _more(send, STREAM_END)
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _tokens(self, script: Script, send: Send | None) -> bool:
        """Make the tokens at their pace, and send them if this is a stream. False if an error event ended it."""
        frame = stream_frame(script)
        if send is not None:
            await _more(send, frame.first)
        due = self.clock()
        for index in range(script.tokens):
            if (
                script.fault
                and index == script.fault_at
                and not await self._fault(script.fault, send)
            ):
                return False
            due += script.pace
            if script.pace and (early := due - self.clock()) > LATE_SECONDS:
                await asyncio.sleep(early)
            elif not script.pace and index % BREATH == BREATH - 1:
                await asyncio.sleep(0)
            self.generation_tokens += 1
            if send is not None:
                await _more(send, frame.token(index))
        if send is not None and script.usage:
            await _more(send, frame.usage)
        return True

    async def _fault(self, fault: str, send: Send | None) -> bool:
        """Let it happen. False when the answer ends with the error event that was sent."""
        match fault:
            case "cut":
                raise _CutError("the script cut this answer")
            case "die":
                self.kill_process()
            case "hang":
                await asyncio.Event().wait()
            case "deaf":
                while True:
                    with suppress(asyncio.CancelledError):
                        await asyncio.Event().wait()
            case "error_event" | "engine_dead":
                self.dead = self.dead or fault == "engine_dead"
                if send is None:
                    raise _CutError("the engine failed")
                message = _ENGINE_GONE if self.dead else "scripted failure"
                await _more(send, error_event(message) + STREAM_END)
                return False
        return True


async def _ended(*tasks: "asyncio.Future[Any]") -> None:
    """Wait for the end of tasks that were cancelled, by force or not: who plays the deaf has to be it."""
    while not all(task.done() for task in tasks):
        with suppress(asyncio.CancelledError):
            await asyncio.wait(tasks)


async def _start(send: Send, status: int, content_type: str) -> None:
    headers = [(b"content-type", content_type.encode())]
    await send({"type": "http.response.start", "status": status, "headers": headers})


async def _more(send: Send, body: bytes) -> None:
    await send({"type": "http.response.body", "body": body, "more_body": True})


async def _reply(
    send: Send, status: int, body: bytes, content_type: str = "application/json"
) -> None:
    await _start(send, status, content_type)
    await send({"type": "http.response.body", "body": body, "more_body": False})
