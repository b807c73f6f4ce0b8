"""The worker's side of the WebSocket: dial the proxy, keep the connection, carry frames.

The channel does not know what a job is. All frames that are put into the outbox in one turn of the
event loop leave in one message. When the connection breaks, the outbox keeps the frames that have
not been sent; the peer's next `Hello` reports to the proxy what each run has sent.
"""

import asyncio
from collections.abc import Callable, Coroutine, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Protocol

import structlog
from websockets.asyncio.client import ClientConnection

from proxy.wire.flow import Outbox
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
from worker_vllm.channel.dial import (
    CLOSE_CODE_LOST,
    CLOSE_CODE_NORMAL,
    OPEN_TIMEOUT_SECONDS,
    STALL_SECONDS,
    ConnectionLostError,
    Dialler,
    DialRefusedError,
    Link,
    dial,
    hang_up,
    losing_connection,
    refusal_of_close,
)

# First limit of the pause before dialling again. It doubles with each failure in a row.
BACKOFF_FIRST_SECONDS = 0.5
BACKOFF_MAX_DOUBLINGS = 10
# Time that `Channel.close` waits for the last frames to leave.
OUTBOX_FLUSH_SECONDS = 5.0
# A proxy refuses a `Hello` sooner. An open connection counts as accepted at the first heartbeat
# after this time, even if the proxy has sent nothing.
ACCEPTED_SECONDS = 1.0
CLOSE_CODE_GOING_AWAY = 1001
CLOSE_CODE_PROTOCOL_ERROR = 1002


class WakingOutbox(Outbox):
    """An outbox with events for its writer and for those who wait until it is empty."""

    def __init__(self) -> None:
        super().__init__()
        # Set while there may be a frame to write.
        self.ready = asyncio.Event()
        # Set by the writer when every frame has been written.
        self.empty = asyncio.Event()

    def put(self, frame: Frame) -> None:
        super().put(frame)
        self._notify()

    def put_in_lane(self, *frames: JobFrame) -> None:
        super().put_in_lane(*frames)
        self._notify()

    def _notify(self) -> None:
        self.ready.set()
        self.empty.clear()


class Peer(Protocol):
    """The user of a channel. `origin` is the outbox of the connection that a call concerns."""

    def hello(self, origin: Outbox) -> Hello:
        """Return the first frame of a new connection."""

    def credit(self, origin: Outbox) -> Credit:
        """Return the second frame of a new connection: the slots that its proxy may use."""

    def receive(self, origin: Outbox, frame: ToWorker) -> None:
        """Handle a frame from the proxy."""

    def sent(self, origin: Outbox, frames: Sequence[Frame]) -> None:
        """Note that frames were handed to the socket; it is not known whether they arrive."""

    def disconnected(self, origin: Outbox) -> None:
        """Note that the connection is lost; the channel dials again."""


class OrphanedError(Exception):
    """The proxy has been unreachable for longer than the orphan timeout."""


@dataclass(frozen=True, slots=True)
class ChannelTimeouts:
    """Timeouts of a channel, in seconds."""

    heartbeat: float
    """Interval of heartbeats, and the longest pause between two attempts to dial."""
    orphan: float | None = None
    """Longest time without a proxy, after which the channel gives up; None for no limit."""
    open: float = OPEN_TIMEOUT_SECONDS
    """Timeout of the opening handshake."""
    accepted: float = ACCEPTED_SECONDS
    """An open connection counts as accepted at the first heartbeat after this time, even if the
    proxy has sent nothing.
    """
    stall: float = STALL_SECONDS
    """The time after which a connection that accepts no data counts as lost."""


class Channel:
    """One worker's connection to its proxy, which is reopened whenever it breaks."""

    def __init__(
        self,
        link: Link,
        peer: Peer,
        timeouts: ChannelTimeouts,
        dialler: Dialler,
        *,
        was_accepted: bool = False,
    ) -> None:
        """Prepare a channel; `run` dials.

        `was_accepted`: the proxy has accepted an earlier connection of this worker, so address and
        token are correct.
        """
        self._link = link
        self._dialler = dialler
        self.outbox = WakingOutbox()
        self._peer = peer
        self._timeouts = timeouts
        self._log = structlog.get_logger().bind(worker=link.worker)
        self._socket: ClientConnection | None = None
        self._closing = asyncio.Event()
        self._was_accepted = was_accepted
        # The proxy has accepted a connection of this channel. From then on no refusal is final.
        self.accepted = False
        # Set when the first attempt to dial has succeeded or failed.
        self.tried = asyncio.Event()
        self.connected = asyncio.Event()

    async def run(self) -> None:
        """Stay connected until `close`.

        Raises `DialRefusedError` if the proxy rejects this worker, and `OrphanedError` if it has
        been unreachable for longer than the orphan timeout.
        """
        clock = asyncio.get_running_loop().time
        failures = 0
        reached_at = clock()
        while not self._closing.is_set():
            try:
                if await self._connection():
                    failures = 0
                    reached_at = clock()
            except DialRefusedError as refusal:
                if self._is_final(refusal) and not self._closing.is_set():
                    raise
                reached_at = clock()
                self._log.warning("channel.refused", reason=str(refusal))
            finally:
                self.tried.set()
            if self._closing.is_set():
                return
            pause = pause_before_dialling(failures, self._timeouts.heartbeat, self._dialler.uniform)
            if self._timeouts.orphan is not None:
                away = clock() - reached_at
                if away >= self._timeouts.orphan:
                    raise OrphanedError(
                        f"the proxy at {self._link.url} has been unreachable for {away:.0f} s;"
                        " start the proxy, or check WORKER_CONNECT"
                    )
                pause = min(pause, self._timeouts.orphan - away)
            failures = min(failures + 1, BACKOFF_MAX_DOUBLINGS)
            await _wait(self._closing.wait(), pause)

    def say(self, frame: Frame) -> None:
        """Send a frame that does not belong to a job; drop it while disconnected."""
        if self._socket is not None:
            self.outbox.put(frame)

    async def close(self, code: int = CLOSE_CODE_GOING_AWAY, reason: str = "") -> None:
        """Write the frames in the outbox, close the connection, and stop dialling."""
        if self._socket is not None and not self._closing.is_set():
            await _wait(self.outbox.empty.wait(), OUTBOX_FLUSH_SECONDS)
        self._closing.set()
        if self._socket is not None:
            await hang_up(self._socket, code, reason)

    def retire(self) -> None:
        """Stop dialling and ignore refusals, because another channel takes over."""
        self._closing.set()

    def _is_final(self, refusal: DialRefusedError) -> bool:
        """Return True if the worker must end.

        An HTTP status is not final once the proxy has been reached: then it comes from something
        in front of the proxy.
        """
        return not self.accepted and not (self._was_accepted and refusal.by_handshake)

    async def _connection(self) -> bool:
        """Dial, and serve the connection until it ends. Return False if it could not be opened."""
        socket = await dial(self._link, self._closing, self._dialler.connect, self._timeouts.open)
        if socket is None:
            return False
        try:
            self._socket = socket
            await self._exchange_frames(socket)
        finally:
            self._socket = None
            self.connected.clear()
            self._peer.disconnected(self.outbox)
            is_leaving = self._closing.is_set()
            await hang_up(socket, CLOSE_CODE_NORMAL if is_leaving else CLOSE_CODE_LOST)
        refusal = refusal_of_close(socket)
        self._log.info("channel.closed", code=socket.close_code, reason=socket.close_reason)
        if refusal is not None:
            raise refusal
        return True

    async def _exchange_frames(self, socket: ClientConnection) -> None:
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
            with losing_connection:
                message = await socket.recv()
            self.accepted = True
            payload = message if isinstance(message, bytes) else message.encode()
            try:
                frames = decode_to_worker(payload)
            except BadFrameError as error:
                self._log.error("channel.bad_frame", error=str(error))
                await hang_up(socket, CLOSE_CODE_PROTOCOL_ERROR, "bad frame")
                # The next `recv` raises, which ends this loop.
                continue
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
            with losing_connection:
                # Pings do not detect this, because they wait behind the data.
                async with asyncio.timeout(self._timeouts.stall):
                    await socket.send(payload)

    async def _beat(self) -> None:
        clock = asyncio.get_running_loop().time
        opened = clock()
        while True:
            await asyncio.sleep(self._timeouts.heartbeat)
            if clock() - opened >= self._timeouts.accepted:
                self.accepted = True
            self.outbox.put(Heartbeat())


def pause_before_dialling(
    failures: int, heartbeat: float, uniform: Callable[[float, float], float]
) -> float:
    """Return the pause in seconds after a number of failed attempts in a row, with random jitter.

    The jitter prevents all workers from dialling a restarted proxy at the same moment. The pause
    is at most one heartbeat interval: a restarted proxy gives its workers one lease to reconnect
    with their runs, and a lease is several heartbeat intervals.
    """
    limit = min(heartbeat, BACKOFF_FIRST_SECONDS * 2**failures)
    return uniform(limit / 2, limit)


async def _wait(signal: Coroutine[None, None, bool], seconds: float) -> None:
    """Wait for a signal, for `seconds` at most."""
    with suppress(TimeoutError):
        await asyncio.wait_for(signal, seconds)
