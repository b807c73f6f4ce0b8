"""An engine for tests and benchmarks with the OpenAI API, as `script.py` describes."""

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

from proxy.wire.fields import REQUEST_ID
from worker_vllm.asgi import App, Receive, Scope, Send
from worker_vllm.engine import responses
from worker_vllm.engine.base import Reading
from worker_vllm.engine.events import StreamEvents, answer, stream_events
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
# Without a pace, the engine yields to the event loop after this many tokens, so that a request can
# be cancelled.
TOKENS_PER_YIELD = 64
# Tokens that are due within this time are sent together, because timers are not more precise.
TIMER_RESOLUTION_SECONDS = 0.0005
SERVED_NAME = "scripted"
_GENERATE: dict[str, Kind] = {
    "/v1/chat/completions": "chat",
    "/v1/completions": "completion",
    "/v1/responses": "response",
}
_ENGINE_GONE = "EngineCore encountered an issue. See stack trace (above) for the root cause."


class _CutError(Exception):
    """The script ends the response here, before it is complete."""


@dataclass(slots=True)
class ScriptedEngine:
    """See `Engine`. Requests can inject faults."""

    served_name: str = SERVED_NAME
    slots: int = DEFAULT_SLOTS
    stage: Stage = print
    kill_process: Callable[[], None] = field(default=lambda: os.kill(os.getpid(), signal.SIGKILL))
    # More precise than the clock of the event loop.
    clock: Callable[[], float] = field(default=time.monotonic)
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

    def fields(self, path: str) -> frozenset[str]:  # noqa: ARG002 - there are no request models
        return frozenset()

    def routes(self) -> frozenset[str]:
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
        path: str = scope["path"]
        kind = _GENERATE.get(path)
        if kind is not None and scope["method"] == "POST":
            headers = dict(scope["headers"])
            # As with vLLM, the id of the answer contains the request's.
            answer_id = headers.get(REQUEST_ID, b"").decode() or self.new_id()
            await self._generate(kind, answer_id, receive, send)
            return
        if scope["method"] == "POST" and asks_to_hang((await receive()).get("body", b"")):
            # Returns when the caller has disconnected.
            await receive()
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
                models = json.dumps({"object": "list", "data": [card]}).encode()
                return 200, "application/json", models
            case "/tokenize":
                tokens = b'{"count":1,"max_model_len":1048576,"tokens":[0],"token_strs":null}'
                return 200, "application/json", tokens
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

    async def _generate(self, kind: Kind, answer_id: str, receive: Receive, send: Send) -> None:
        body = (await receive()).get("body", b"")
        try:
            script = read_script(body, kind, self.served_name, answer_id)
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
            # Has no effect if it has finished.
            playing.cancel()
            await _wait_for_end(playing, leaving)
            self.running -= 1
        if not playing.cancelled():
            playing.result()

    async def _play(self, script: Script, send: Send) -> None:
        self.prompt_tokens += script.prompt_tokens
        if script.fault == "status":
            status = script.fault_at
            await _reply(send, status, error_body("scripted", "InternalServerError", status))
            return
        if script.fault == "head_delay":
            await asyncio.sleep(script.fault_at / 1000)
        if not script.stream:
            await self._tokens(script, None)
            is_response = script.kind == "response"
            await _reply(send, 200, responses.answer(script) if is_response else answer(script))
            return
        await _send_head(send, 200, "text/event-stream; charset=utf-8")
        await self._tokens(script, send)
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _tokens(self, script: Script, send: Send | None) -> None:
        """Generate the tokens at the script's pace, and send them if this is a stream."""
        events = (
            responses.stream_events(script) if script.kind == "response" else stream_events(script)
        )
        if send is not None and events.opening:
            await _send_part(send, events.opening)
        if script.fault == "prefill":
            await asyncio.sleep(script.fault_at / 1000)
        if send is not None:
            await _send_part(send, events.first)
        due = self.clock()
        for index in range(script.tokens):
            is_faulty = script.fault and index == script.fault_at
            if is_faulty and not await self._inject_fault(script.fault, events, send):
                return
            due += script.pace
            if script.pace and (early := due - self.clock()) > TIMER_RESOLUTION_SECONDS:
                await asyncio.sleep(early)
            elif not script.pace and index % TOKENS_PER_YIELD == TOKENS_PER_YIELD - 1:
                await asyncio.sleep(0)
            self.generation_tokens += 1
            if send is not None:
                await _send_part(send, events.token(index))
        if send is not None:
            await _send_part(send, events.closing)

    async def _inject_fault(self, fault: str, events: StreamEvents, send: Send | None) -> bool:
        """Perform a fault. Returns False if an error event was sent, which ends the response."""
        match fault:
            case "cut":
                raise _CutError("the script cut this response")
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
                await _send_part(send, events.error(message))
                return False
        return True


async def _wait_for_end(*tasks: "asyncio.Future[Any]") -> None:
    """Wait for the end of cancelled tasks, and ignore the cancellation of the caller.

    The fault `deaf` has to ignore it too.
    """
    while not all(task.done() for task in tasks):
        with suppress(asyncio.CancelledError):
            await asyncio.wait(tasks)


async def _send_head(send: Send, status: int, content_type: str) -> None:
    headers = [(b"content-type", content_type.encode())]
    await send({"type": "http.response.start", "status": status, "headers": headers})


async def _send_part(send: Send, body: bytes) -> None:
    await send({"type": "http.response.body", "body": body, "more_body": True})


async def _reply(
    send: Send, status: int, body: bytes, content_type: str = "application/json"
) -> None:
    await _send_head(send, status, content_type)
    await send({"type": "http.response.body", "body": body, "more_body": False})
