"""Ports for servers that must be started at a known one, or twice at the same."""

import os
import random
import socket
from pathlib import Path

_FIRST = 20_000
_EPHEMERAL = Path("/proc/sys/net/ipv4/ip_local_port_range")
_chance = random.Random(os.urandom(8))


def free_port() -> int:
    """Return a loopback port that nothing listens on.

    It lies below the range from which the kernel gives ports to connections, so that no client of a
    test beside this one takes it before its server does.
    """
    last = int(_EPHEMERAL.read_text().split()[0]) if _EPHEMERAL.exists() else 32_768
    while True:
        port = _chance.randrange(min(_FIRST, last // 2), last)
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
        return port
