"""The worker channel: a plain ASGI application for `/v2/{endpoint}/worker`.

The worker opens the WebSocket. The protocol is `proxy.wire.frames`. A handshake that is refused
permanently is answered with an HTTP status (401, 404). If a `Hello` is refused, the connection is
closed with a code from 4400 and an actionable reason. A worker that reconnects under the same id
keeps the runs that it holds; see `Hello`.
"""

import asyncio
from contextlib import suppress
from typing import Any

import structlog

from proxy.channel.native.connection import Connection, Reader
from proxy.channel.native.membership import Membership
from proxy.channel.native.validation import (
    LOG_CHARACTERS,
    WorkerRefusedError,
    check_hello,
    public_stage,
)
from proxy.service.clock import Clock
from proxy.service.endpoints import Endpoints, listed
from proxy.service.fleet import Fleet
from proxy.service.worker import LoadingStage, Worker
from proxy.wire import frames

log = structlog.get_logger()

HELLO_SECONDS = 10.0
MAX_SLOTS = 100_000
TALK_SECONDS = 10.0
# The rate limit for `Hello` and `Log` frames: at most `TALK_MAX_FRAMES` per `TALK_SECONDS`. A
# worker sends a handful while it loads.
TALK_MAX_FRAMES = 100


class WorkerChannel:
    """Accepts worker connections and processes their frames."""

    def __init__(
        self, endpoints: Endpoints, fleet: Fleet, membership: Membership, clock: Clock
    ) -> None:
        self._endpoints = endpoints
        self._fleet = fleet
        self._membership = membership
        self._clock = clock

    async def refuse(
        self, _scope: Any, receive: Any, send: Any, status: int, sentence: str
    ) -> None:
        """Refuse a handshake: the token is missing or invalid, or the path is not a worker path."""
        await receive()  # websocket.connect
        await _deny(send, status, sentence)

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Serve one authenticated worker connection from handshake to close."""
        await receive()  # websocket.connect
        endpoint_id = scope["path"].split("/")[2]
        endpoint = self._endpoints.get(endpoint_id)
        if endpoint is None:
            served = listed([one.id for one in self._endpoints])
            await _deny(
                send,
                404,
                f"no endpoint {endpoint_id!r} here, only {served}:"
                f" start the proxy with --endpoint {endpoint_id}",
            )
            return
        await send({"type": "websocket.accept"})
        connection = Connection(send, lambda: self._fleet.wake(endpoint.id))
        worker: Worker | None = None
        code = 1006
        try:
            hello, rest = await _hello(receive)
            worker = await self._membership.join(endpoint, hello, connection)
            writer = asyncio.create_task(connection.write())
            try:
                await self._converse(worker, connection, rest, receive)
            finally:
                writer.cancel()
                with suppress(asyncio.CancelledError):
                    await writer
        except DisconnectedError as gone:
            code = gone.code
        except (WorkerRefusedError, frames.BadFrameError, TimeoutError) as refused:
            code = refused.code if isinstance(refused, WorkerRefusedError) else 4400
            reason = str(refused) or "no hello received before the timeout"
            log.warning("worker.refused", endpoint=endpoint.id, code=code, reason=reason)
            with suppress(OSError, RuntimeError):
                await send({"type": "websocket.close", "code": code, "reason": reason[:120]})
        finally:
            if worker is not None and worker.port is connection:
                self._membership.part(worker, connection, code)
            connection.ended()

    async def _converse(
        self, worker: Worker, connection: Connection, rest: list[frames.ToProxy], receive: Any
    ) -> None:
        reader = Reader(worker, self._fleet, connection)
        loop = asyncio.get_running_loop()
        batch, talk = rest, ChatterLimit()
        while True:
            if worker.port is not connection:
                raise DisconnectedError(1000)  # replaced by a newer connection
            worker.seen = worker.heard = loop.time()
            for frame in batch:
                match frame:
                    case frames.Chunk() | frames.Head() | frames.End():
                        reader.handle(frame)
                    case frames.Output():
                        await reader.handle_output(frame)
                    case frames.Credit(slots=slots, light=light):
                        self._set_slots(worker, slots, light)
                    case frames.Hello():
                        if not talk.may_go_on(worker.seen):
                            raise WorkerRefusedError(4400, "too many hello frames")
                        check_hello(frame)
                        self._membership.announce(worker, frame)
                    case frames.Log(text=text):
                        if talk.may_go_on(worker.seen):
                            self._log(worker, text)
                        else:
                            worker.ignored += 1
                    case frames.Heartbeat():
                        pass
            # Yield, so that a flooding worker does not delay the `Pause` frames sent to it.
            await asyncio.sleep(0)
            batch = await _frames(receive)

    def _set_slots(self, worker: Worker, slots: int, light: int) -> None:
        worker.slots = min(max(slots, 0), MAX_SLOTS)
        worker.light_slots = min(max(light, 0), MAX_SLOTS)
        if worker.slots:
            worker.stage = None
        self._fleet.wake(worker.endpoint)

    def _log(self, worker: Worker, text: str) -> None:
        """Log a line of a worker; if the worker is not ready yet, it is a stage of its start."""
        log.info("worker.says", worker=worker.id, text=text[:LOG_CHARACTERS])
        if not worker.slots:
            worker.stage = LoadingStage(public_stage(text), self._clock.now())


class ChatterLimit:
    """The rate limit for a worker's `Hello` and `Log` frames, which protects log and disk."""

    def __init__(self) -> None:
        self._since = float("-inf")
        self._said = 0

    def may_go_on(self, now: float) -> bool:
        """Count one frame and return True if the worker is within its limit."""
        if now - self._since > TALK_SECONDS:
            self._since, self._said = now, 0
        self._said += 1
        return self._said <= TALK_MAX_FRAMES


class DisconnectedError(Exception):
    """The WebSocket was closed with this close code."""

    def __init__(self, code: int) -> None:
        super().__init__(str(code))
        self.code = code


async def _frames(receive: Any) -> list[frames.ToProxy]:
    """Return the frames of the next message that contains any."""
    while True:
        message = await receive()
        if message["type"] == "websocket.disconnect":
            raise DisconnectedError(message.get("code") or 1006)
        data = message.get("bytes")
        if data is None:
            raise WorkerRefusedError(4400, "frames must be sent as binary messages")
        if batch := frames.decode_to_proxy(data):
            return batch


async def _hello(receive: Any) -> tuple[frames.Hello, list[frames.ToProxy]]:
    """Return the worker's first frame and the other frames of its message."""
    async with asyncio.timeout(HELLO_SECONDS):
        first, *rest = await _frames(receive)
    if not isinstance(first, frames.Hello):
        raise WorkerRefusedError(4400, "the first frame must be hello")
    return first, rest


async def _deny(send: Any, status: int, reason: str) -> None:
    """Refuse the handshake with an HTTP response, whose body the worker prints."""
    log.warning("worker.refused", code=status, reason=reason)
    headers = [(b"content-type", b"text/plain; charset=utf-8")]
    await send({"type": "websocket.http.response.start", "status": status, "headers": headers})
    await send({"type": "websocket.http.response.body", "body": reason.encode()})
