"""The worker's side of the WebSocket: dial the proxy, keep the connection, carry frames. Knows nothing of jobs.

Everything that is put into the outbox in one turn of the event loop leaves in one message. When the connection breaks
the outbox keeps what waits; the peer's next `Hello` tells the proxy what each run has sent.
"""

import asyncio
from collections.abc import Callable, Coroutine, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Protocol

import structlog
from websockets.asyncio.client import ClientConnection

from proxy.wire.frames import (
    BadFrameError,
    Credit,
    Frame,
    Heartbeat,
    Hello,
    JobFrame,
    ToWorker,
    decode_to_worker,
)
from proxy.wire.outbox import Outbox
from worker_vllm.channel.dial import (
    OPEN_SECONDS,
    ConnectionLostError,
    Dialler,
    DialRefusedError,
    Link,
    dial,
    hang_up,
    losing_connection,
    refusal_of_close,
)

BACKOFF_FIRST = 0.5  # seconds; doubled at each failure
FLUSH_SECONDS = 5.0  # how long closing waits for the last frames to leave
GOING_AWAY = 1001
PROTOCOL_ERROR = 1002


class WakingOutbox(Outbox):
    """An outbox that says when something was put in."""

    def __init__(self) -> None:
        super().__init__()
        self.ready = asyncio.Event()
        self.empty = asyncio.Event()  # set by the writer when all of it has been written

    def put(self, frame: Frame) -> None:
        super().put(frame)
        self._tell()

    def put_in_lane(self, frame: JobFrame) -> None:
        super().put_in_lane(frame)
        self._tell()

    def _tell(self) -> None:
        self.ready.set()
        self.empty.clear()


class Peer(Protocol):
    """The user of a channel. `origin` is the outbox of the connection that a call is about."""

    def hello(self, origin: Outbox) -> Hello:
        """Return the first frame of a new connection."""

    def credit(self, origin: Outbox) -> Credit:
        """Return the second frame of a new connection: the slots that its proxy may use."""

    def receive(self, origin: Outbox, frame: ToWorker) -> None:
        """Handle a frame from the proxy."""

    def sent(self, origin: Outbox, frames: Sequence[Frame]) -> None:
        """Note that these frames were handed to the socket; whether they arrive is unknown."""

    def disconnected(self, origin: Outbox) -> None:
        """Note that the connection is lost; the channel dials again."""


class OrphanedError(Exception):
    """The proxy was out of reach for too long."""


@dataclass(frozen=True, slots=True)
class ChannelTimeouts:
    """How long a channel waits for what."""

    heartbeat: float
    orphan: float | None = None
    open: float = OPEN_SECONDS  # for a connection to be opened


class Channel:
    """One worker's connection to its proxy, made again whenever it breaks."""

    def __init__(
        self,
        link: Link,
        peer: Peer,
        patience: ChannelTimeouts,
        dialler: Dialler,
        *,
        was_accepted: bool = False,
    ) -> None:
        """`was_accepted`: the proxy has kept an earlier connection of this worker: address and token are right."""
        self._link = link
        self._dialler = dialler
        self.outbox = WakingOutbox()
        self._peer = peer
        self._patience = patience
        self._log = structlog.get_logger().bind(worker=link.worker)
        self._socket: ClientConnection | None = None
        self._closing = asyncio.Event()
        self._was_accepted = was_accepted
        self.accepted = (
            False  # the proxy has kept a connection of ours; from then on no refusal is final
        )
        self.tried = asyncio.Event()  # the first attempt has succeeded or failed
        self.connected = asyncio.Event()

    async def run(self) -> None:
        """Stay connected until `close`. `DialRefusedError`: the proxy does not want us; `OrphanedError`: it is gone."""
        clock = asyncio.get_running_loop().time
        failures, reached = 0, clock()
        while not self._closing.is_set():
            try:
                if await self._connection():
                    failures, reached = 0, clock()
            except DialRefusedError as refusal:
                if self._is_final(refusal) and not self._closing.is_set():
                    raise
                reached = clock()
                self._log.warning("channel.refused", reason=str(refusal))
            finally:
                self.tried.set()
            if self._closing.is_set():
                return
            pause = pause_before_dialling(failures, self._patience.heartbeat, self._dialler.uniform)
            if self._patience.orphan is not None:
                away = clock() - reached
                if away >= self._patience.orphan:
                    raise OrphanedError(f"no proxy at {self._link.url} for {away:.0f} s")
                pause = min(pause, self._patience.orphan - away)
            failures = min(failures + 1, 10)
            await _wait(self._closing.wait(), pause)

    def say(self, frame: Frame) -> None:
        """Send a frame that belongs to no job, if there is a connection."""
        if self._socket is not None:
            self.outbox.put(frame)

    async def close(self, code: int = GOING_AWAY, reason: str = "") -> None:
        """Write what waits, close, and dial no more."""
        if self._socket is not None and not self._closing.is_set():
            await _wait(self.outbox.empty.wait(), FLUSH_SECONDS)
        self._closing.set()
        if self._socket is not None:
            await hang_up(self._socket, code, reason)

    def retire(self) -> None:
        """From now on neither dial again nor take a refusal seriously: another channel takes over."""
        self._closing.set()

    def _is_final(self, refusal: DialRefusedError) -> bool:
        """Whether the worker must end. Not for an HTTP status where the proxy is known: something else answered."""
        return not self.accepted and not (self._was_accepted and refusal.by_handshake)

    async def _connection(self) -> bool:
        """One connection from dialling to its end. True if there was one."""
        socket = await dial(self._link, self._closing, self._dialler.connect, self._patience.open)
        if socket is None:
            return False
        try:
            self._socket = socket
            await self._speak(socket)
        finally:
            self._socket = None
            self.connected.clear()
            self._peer.disconnected(self.outbox)
            await hang_up(socket)
        refusal = refusal_of_close(socket)
        self._log.info("channel.closed", code=socket.close_code, reason=socket.close_reason)
        if refusal is not None:
            raise refusal
        return True

    async def _speak(self, socket: ClientConnection) -> None:
        self.outbox.clear_control()
        self.outbox.put(self._peer.hello(self.outbox))
        self.outbox.put(self._peer.credit(self.outbox))
        self._log.info("channel.connected", url=self._link.url)
        self.connected.set()
        self.tried.set()
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(self._write(socket))
                group.create_task(self._beat())
                group.create_task(self._read(socket))
        except* ConnectionLostError as lost:
            self._log.debug("channel.lost", errors=[str(error) for error in lost.exceptions])

    async def _read(self, socket: ClientConnection) -> None:
        while True:
            with losing_connection():
                message = await socket.recv()
            self.accepted = True
            try:
                frames = decode_to_worker(
                    message if isinstance(message, bytes) else message.encode()
                )
            except BadFrameError as error:
                self._log.error("channel.bad_frame", error=str(error))
                await hang_up(socket, PROTOCOL_ERROR, "bad frame")
                continue  # `recv` ends this loop
            for frame in frames:
                self._peer.receive(self.outbox, frame)

    async def _write(self, socket: ClientConnection) -> None:
        while True:
            message = self.outbox.next_message()
            if message is None:
                self.outbox.empty.set()
                self.outbox.ready.clear()
                await self.outbox.ready.wait()
                continue
            payload, frames = message
            self._peer.sent(self.outbox, frames)
            with losing_connection():
                await socket.send(payload)

    async def _beat(self) -> None:
        while True:
            await asyncio.sleep(self._patience.heartbeat)
            self.accepted = True
            self.outbox.put(Heartbeat())


def pause_before_dialling(
    failures: int, heartbeat: float, uniform: Callable[[float, float], float]
) -> float:
    """Seconds to wait after so many failed attempts in a row, drawn at random: a proxy that comes back meets no herd.

    Never more than a heartbeat. A proxy that was started again gives its workers one lease to come back with what they
    run, and a lease is several heartbeats: whoever tries as often as it would have spoken is not late.
    """
    most = min(heartbeat, BACKOFF_FIRST * 2**failures)
    return uniform(most / 2, most)


async def _wait(signal: Coroutine[None, None, bool], seconds: float) -> None:
    """Wait for a signal, but not longer than this."""
    with suppress(TimeoutError):
        await asyncio.wait_for(signal, seconds)
