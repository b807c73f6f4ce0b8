"""Both ends of a simulated TCP connection, as asyncio transports.

A write goes into the buffer of its transport (user space), from there in segments into the pipe
(the kernels and the wire), which holds at most one window of bytes that the peer has not read, and
from there into the peer's inbox. Each segment has a latency; segments never overtake each other.
The peer's protocol receives its inbox in pieces of drawn sizes.
"""

import asyncio
from collections import deque
from collections.abc import Callable
from contextvars import Context
from enum import Enum, auto
from socket import AF_INET
from typing import Any

from sim.node import Node

DEFAULT_HIGH_BYTES = 64 * 1024
# Segments on a link that is down are sent again after this time.
RETRANSMISSION_SECONDS = 0.2
# Probability that only a part of the inbox is delivered at once.
PARTIAL_READ = 0.15


class Signal(Enum):
    """Segments without data."""

    # The source has closed its direction of the connection.
    FIN = auto()
    # The source has closed the connection without reading everything, or does not know it.
    RESET = auto()


class SimSocket:
    """The few methods of a socket that the code calls."""

    def __init__(self, name: tuple[str, int], peer: tuple[str, int] | None = None) -> None:
        self._name = name
        self._peer = peer
        self.family = AF_INET
        self.on_close: Any = None

    def getsockname(self) -> tuple[str, int]:
        return self._name

    def getpeername(self) -> tuple[str, int]:
        if self._peer is None:
            raise OSError("not connected")
        return self._peer

    def setsockopt(self, level: int, option: int, value: int, /) -> None:
        """Ignore the option."""

    def close(self) -> None:
        if self.on_close is not None:
            self.on_close()


class Pipe:
    """One direction of a connection."""

    def __init__(self, connection: Any, source: "SimTransport", target: "SimTransport") -> None:
        self._connection = connection
        self._network = connection.network
        self._loop = connection.network.loop
        self._source = source
        self._target = target
        # Segments with the time of their arrival, at the earliest.
        self._segments: deque[tuple[float, bytes | Signal]] = deque()
        self._is_pumping = False
        self._last_due = 0.0
        self.buffer = bytearray()
        self.unread = 0

    def push(self) -> None:
        """Move bytes from the buffer into the window."""
        while self.buffer and (room := self._connection.window - self.unread) > 0:
            size = min(room, self._connection.segment)
            segment = bytes(self.buffer[:size])
            del self.buffer[:size]
            self.unread += len(segment)
            self.send(segment)

    def send(self, segment: bytes | Signal) -> None:
        """Put a segment on the wire, behind the others."""
        due = self._loop.time() + self._connection.latency()
        self._last_due = max(due, self._last_due)
        self._segments.append((self._last_due, segment))
        if not self._is_pumping:
            self._is_pumping = True
            self._loop.call_at(self._last_due, self._arrive, context=Context())

    def discard(self) -> None:
        """Forget all bytes that have not arrived."""
        self.buffer.clear()
        self._segments.clear()

    def _arrive(self) -> None:
        self._is_pumping = False
        if not self._segments:
            return
        if self._connection.is_silent:
            return
        again = self._loop.time()
        if self._connection.is_blocked:
            again += RETRANSMISSION_SECONDS
        else:
            _, segment = self._segments.popleft()
            self._target.arrived(segment)
            if not self._segments:
                return
            again = self._segments[0][0]
        self._is_pumping = True
        self._loop.call_at(again, self._arrive, context=Context())

    def was_read(self, size: int) -> None:
        """Note that the target has read bytes, which opens the window."""
        self.unread -= size
        if self.buffer:
            # Not in the target's context: it must not run the code of the source.
            self._loop.call_soon(self._refill, context=Context())

    def _refill(self) -> None:
        self.push()
        self._source.drained()


class SimTransport(asyncio.Transport):
    """One end of a connection."""

    def __init__(self, connection: Any, node: Node, name: tuple[str, int], peer: Any) -> None:
        wire = SimSocket(name, peer)
        super().__init__({"socket": wire, "sockname": name, "peername": peer})
        self._network = connection.network
        self._loop = connection.network.loop
        self.connection = connection
        self.node = node
        self._context = node.context.copy()
        self.out: Pipe
        self.into: Pipe
        self._protocol: Any = None
        self._inbox = bytearray()
        self._end: Signal | None = None
        self._high = DEFAULT_HIGH_BYTES
        self._low = DEFAULT_HIGH_BYTES // 4
        self._is_delivering = False
        self._is_protocol_paused = False
        self._is_reading = True
        self._is_closing = False
        self._has_written_eof = False
        # The operating system has closed its end.
        self.is_gone = False

    def connect(self, peer: "SimTransport") -> None:
        """Make two ends a connection."""
        self.out = Pipe(self.connection, self, peer)
        peer.out = Pipe(self.connection, peer, self)
        self.into = peer.out
        peer.into = self.out

    def accept_soon(self, factory: Callable[[], Any]) -> None:
        """Let this end's node accept the connection as soon as it runs."""
        self._loop.call_soon(self._accept, factory, context=self._context)

    def _accept(self, factory: Callable[[], Any]) -> None:
        if self.is_gone:
            # Broken before the process could accept it.
            return
        self._protocol = factory()
        self._protocol.connection_made(self)
        self._deliver_soon()

    # `asyncio.Transport`

    def write(self, data: Any) -> None:
        if self._has_written_eof:
            raise RuntimeError("Cannot call write() after write_eof()")
        if self._is_closing or self.is_gone or not data:
            return
        self.out.buffer += data
        self.out.push()
        if len(self.out.buffer) > self._high and not self._is_protocol_paused:
            self._is_protocol_paused = True
            self._protocol.pause_writing()

    def writelines(self, list_of_data: Any) -> None:
        self.write(b"".join(list_of_data))

    def write_eof(self) -> None:
        if self._is_closing or self._has_written_eof:
            return
        self._has_written_eof = True
        if not self.out.buffer:
            self.out.send(Signal.FIN)

    def can_write_eof(self) -> bool:
        return True

    def close(self) -> None:
        if self._is_closing:
            return
        self._is_closing = True
        self._is_reading = False
        if not self.out.buffer:
            self._close_socket()
            self._lose(None)

    def abort(self) -> None:
        if self.is_gone:
            return
        self._is_closing = True
        self.out.buffer.clear()
        self._close_socket()
        self._lose(None)

    def is_closing(self) -> bool:
        return self._is_closing

    def pause_reading(self) -> None:
        self._is_reading = False

    def resume_reading(self) -> None:
        if self._is_closing or self._is_reading:
            return
        self._is_reading = True
        self._deliver_soon()

    def is_reading(self) -> bool:
        return self._is_reading

    def set_protocol(self, protocol: Any) -> None:
        self._protocol = protocol

    def get_protocol(self) -> Any:
        return self._protocol

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        if high is None:
            high = DEFAULT_HIGH_BYTES if low is None else 4 * low
        self._high = high
        self._low = high // 4 if low is None else low

    def get_write_buffer_limits(self) -> tuple[int, int]:
        return self._low, self._high

    def get_write_buffer_size(self) -> int:
        return len(self.out.buffer)

    # Called by the network

    def arrived(self, segment: bytes | Signal) -> None:
        """Take a segment from the wire."""
        if self.is_gone:
            if segment is not Signal.RESET:
                self.out.send(Signal.RESET)
            return
        if segment is Signal.RESET:
            self._inbox.clear()
            self.out.discard()
            self.is_gone = True
            self._is_closing = True
            self._network.left(self)
            self._lose(ConnectionResetError(104, "Connection reset by peer"))
        elif segment is Signal.FIN:
            self._end = Signal.FIN
            self._deliver_soon()
        else:
            self._inbox += segment  # type: ignore[operator]
            self._deliver_soon()

    def drained(self) -> None:
        """Continue after the buffer has become smaller."""
        if self.is_gone:
            return
        if self._is_protocol_paused and len(self.out.buffer) <= self._low:
            self._loop.call_soon(self._resume_writing, context=self._context)
        if not self.out.buffer and self._is_closing:
            self._close_socket()
            self._lose(None)
        elif not self.out.buffer and self._has_written_eof:
            self.out.send(Signal.FIN)

    def killed(self) -> None:
        """Close the socket of a process that was killed: its written bytes still arrive."""
        if not self.is_gone:
            self._is_closing = True
            self.out.buffer.clear()
            self._close_socket()

    def vanish(self) -> None:
        """Reset the connection from inside the network."""
        self.out.discard()
        self.arrived(Signal.RESET)

    def _close_socket(self) -> None:
        self.is_gone = True
        self._network.left(self)
        self.out.send(Signal.RESET if self._inbox else Signal.FIN)
        self._inbox.clear()

    def _lose(self, error: Exception | None) -> None:
        if self._protocol is not None:
            self._loop.call_soon(self._protocol.connection_lost, error, context=self._context)

    def _resume_writing(self) -> None:
        if self._is_protocol_paused and len(self.out.buffer) <= self._low:
            self._is_protocol_paused = False
            self._protocol.resume_writing()

    def _deliver_soon(self) -> None:
        has_news = self._inbox or self._end
        if not self._is_delivering and self._is_reading and has_news and self._protocol is not None:
            self._is_delivering = True
            self._loop.call_soon(self._deliver, context=self._context)

    def _deliver(self) -> None:
        """Give the protocol some of what has arrived. Runs as code of this end's node."""
        self._is_delivering = False
        if self._is_closing or not self._is_reading:
            return
        if self._inbox:
            size = self._network.read_size(len(self._inbox))
            data = bytes(self._inbox[:size])
            del self._inbox[:size]
            self.into.was_read(size)
            self._network.note_read(self, size)
            self._protocol.data_received(data)
            self._deliver_soon()
        elif self._end is not None:
            self._end = None
            if not self._protocol.eof_received():
                self.close()
