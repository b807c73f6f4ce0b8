"""How the two ends of the worker channel treat their TCP socket.

What the kernel has taken can be neither overtaken by a control frame nor held back by a pause. So neither end gives it
more than it needs to keep the line busy: unsent bytes wait in the outbox, where lanes take turns, and the proxy's
receive buffer bounds what one worker can have under way.
"""

import socket
from typing import Protocol

UNSENT_BYTES = 64 * 1024
UNDER_WAY_BYTES = 256 * 1024  # 5 MB/s from a worker 50 ms away, which is 20,000 tokens a second


class Tunable(Protocol):
    """What asyncio and uvloop give for a transport's socket."""

    def setsockopt(self, level: int, option: int, value: int, /) -> None: ...


def keep_little_unsent(wire: Tunable) -> None:
    """Let the kernel take no more while this much of what it has taken is unsent. Nothing where it cannot do that."""
    if hasattr(socket, "TCP_NOTSENT_LOWAT"):
        wire.setsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT, UNSENT_BYTES)


def keep_little_under_way(wire: Tunable) -> None:
    """Bound what the other end can have sent and this end has not read."""
    wire.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, UNDER_WAY_BYTES)


def notice_silence(wire: Tunable) -> None:
    """Let the kernel find out within about 25 s that the other machine is gone, also when nothing is sent to it."""
    wire.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in (("TCP_KEEPIDLE", 10), ("TCP_KEEPINTVL", 5), ("TCP_KEEPCNT", 3)):
        if hasattr(socket, name):
            wire.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)
