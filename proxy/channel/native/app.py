"""The worker channel: a plain ASGI application for `/v2/{endpoint}/worker`, a WebSocket dialled by the worker.

The protocol is `proxy.wire.frames`. A handshake that is refused for good is answered with its HTTP status (401, 404);
a `Hello` that is refused closes with a code from 4400 and a reason that a person can act on. A worker that comes back
under its name keeps what it holds; see `Hello`.
"""

import asyncio
from collections.abc import Callable
from contextlib import suppress
from typing import Any, TypeAlias

import structlog

from proxy.channel.native.connection import Connection, Reader
from proxy.channel.native.membership import Membership
from proxy.channel.native.validation import LOG_CHARACTERS, WorkerRefusedError, check_hello
from proxy.service.dispatch import Dispatch
from proxy.service.endpoints import Endpoints
from proxy.service.fleet import Worker
from proxy.wire import frames

log = structlog.get_logger()

ReaderOf: TypeAlias = Callable[[Worker], Reader]

HELLO_SECONDS = 10.0
MAX_SLOTS = 100_000
TALK_SECONDS = 10.0
MOST_TALK = 100  # hellos and lines for the log in that time; a worker says a handful while it loads


class WorkerChannel:
    """Lets workers in, and speaks with them."""

    def __init__(
        self, endpoints: Endpoints, dispatch: Dispatch, membership: Membership, reader: ReaderOf
    ) -> None:
        self._endpoints, self._dispatch = endpoints, dispatch
        self._membership, self._reader = membership, reader

    async def refuse(
        self, _scope: Any, receive: Any, send: Any, status: int, sentence: str
    ) -> None:
        """Refuse a handshake: whoever dials has no token, or it is not here that workers dial."""
        await receive()  # websocket.connect
        await _deny(send, status, sentence)

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """One connection of a worker that has the token, from handshake to end."""
        await receive()  # websocket.connect
        endpoint_id = scope["path"].split("/")[2]
        endpoint = self._endpoints.get(endpoint_id)
        if endpoint is None:
            await _deny(
                send,
                404,
                f"no endpoint {endpoint_id!r} here: start the proxy with --endpoint {endpoint_id}",
            )
            return
        await send({"type": "websocket.accept"})
        connection = Connection(send, lambda: self._dispatch.wake(endpoint.id))
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
            reason = str(refused) or "no hello came"
            log.warning("worker.refused", endpoint=endpoint.id, code=code, reason=reason)
            with suppress(OSError, RuntimeError):
                await send({"type": "websocket.close", "code": code, "reason": reason[:120]})
        finally:
            if worker is not None and worker.port is connection:
                worker.port = None
                await self._membership.part(worker, code)

    async def _converse(
        self, worker: Worker, connection: Connection, rest: list[frames.ToProxy], receive: Any
    ) -> None:
        reader = self._reader(worker)
        loop = asyncio.get_running_loop()
        batch, talk = rest, ChatterLimit()
        while True:
            if worker.port is not connection:
                raise DisconnectedError(1000)  # the worker has dialled in anew
            worker.seen = loop.time()
            for frame in batch:
                match frame:
                    case frames.Chunk() | frames.Output() | frames.Head() | frames.End():
                        await reader.take(frame)
                    case frames.Credit(slots=slots, light=light):
                        worker.slots = min(max(slots, 0), MAX_SLOTS)
                        worker.light_slots = min(max(light, 0), MAX_SLOTS)
                        self._dispatch.wake(worker.endpoint)
                    case frames.Hello():
                        if not talk.may_go_on(worker.seen):
                            raise WorkerRefusedError(
                                4400, "a worker that says hello all the time is not listened to"
                            )
                        check_hello(frame)
                        self._membership.announce(worker, frame)
                    case frames.Log(text=text):
                        if talk.may_go_on(worker.seen):
                            log.info("worker.says", worker=worker.id, text=text[:LOG_CHARACTERS])
                        else:
                            worker.ignored += 1
                    case frames.Heartbeat():
                        pass
            await asyncio.sleep(
                0
            )  # a worker that floods must not keep its own `pause` from leaving
            batch = await _frames(receive)


class ChatterLimit:
    """How much a worker says about itself: nobody reads a thousand lines a second, and a disk has to hold them."""

    def __init__(self) -> None:
        self._since, self._said = float("-inf"), 0

    def may_go_on(self, now: float) -> bool:
        """Whether what it says now is still not too much."""
        if now - self._since > TALK_SECONDS:
            self._since, self._said = now, 0
        self._said += 1
        return self._said <= MOST_TALK


class DisconnectedError(Exception):
    """The WebSocket has ended, with this close code."""

    def __init__(self, code: int) -> None:
        super().__init__(str(code))
        self.code = code


async def _frames(receive: Any) -> list[frames.ToProxy]:
    """The frames of the next message, at least one."""
    while True:
        message = await receive()
        if message["type"] == "websocket.disconnect":
            raise DisconnectedError(message.get("code") or 1006)
        data = message.get("bytes")
        if data is None:
            raise WorkerRefusedError(4400, "frames are binary messages")
        if batch := frames.decode_to_proxy(data):
            return batch


async def _hello(receive: Any) -> tuple[frames.Hello, list[frames.ToProxy]]:
    """The worker's first frame, and what came with it."""
    async with asyncio.timeout(HELLO_SECONDS):
        first, *rest = await _frames(receive)
    if not isinstance(first, frames.Hello):
        raise WorkerRefusedError(4400, "the first frame must be hello")
    return first, rest


async def _deny(send: Any, status: int, reason: str) -> None:
    """Refuse the handshake with an HTTP answer that the worker prints."""
    log.warning("worker.refused", code=status, reason=reason)
    headers = [(b"content-type", b"text/plain; charset=utf-8")]
    await send({"type": "websocket.http.response.start", "status": status, "headers": headers})
    await send({"type": "websocket.http.response.body", "body": reason.encode()})
