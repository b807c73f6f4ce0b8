"""TCP socket options for both ends of the worker channel.

Data that the kernel has accepted can neither be overtaken by a control frame nor be held back by a
pause. Neither end therefore gives the kernel more than it needs to keep the connection busy:
unsent bytes wait in the outbox, where lanes take turns, and the proxy's receive buffer bounds the
in-flight bytes of one worker.
"""

import socket
from typing import Protocol

UNSENT_LOW_WATERMARK_BYTES = 64 * 1024

# Allows 5 MB/s from a worker at a distance of 50 ms, which is 20,000 tokens per second.
RECEIVE_BUFFER_BYTES = 256 * 1024

# The peer is considered dead after 10 + 3 * 5 seconds without an answer.
KEEPALIVE_OPTIONS = (("TCP_KEEPIDLE", 10), ("TCP_KEEPINTVL", 5), ("TCP_KEEPCNT", 3))


class Tunable(Protocol):
    """The socket of a transport, as asyncio and uvloop return it."""

    def setsockopt(self, level: int, option: int, value: int, /) -> None: ...


def limit_unsent_bytes(wire: Tunable) -> None:
    """Report the socket as writable only below this number of unsent bytes, where supported."""
    if hasattr(socket, "TCP_NOTSENT_LOWAT"):
        wire.setsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT, UNSENT_LOW_WATERMARK_BYTES)


def limit_receive_buffer(wire: Tunable) -> None:
    """Bound the bytes that the peer has sent and this end has not read."""
    wire.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, RECEIVE_BUFFER_BYTES)


def enable_keepalive(wire: Tunable) -> None:
    """Let the kernel detect within about 25 s that the peer is gone, also on an idle connection."""
    wire.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in KEEPALIVE_OPTIONS:
        if hasattr(socket, name):
            wire.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)
