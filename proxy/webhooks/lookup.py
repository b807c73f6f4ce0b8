"""The resolution of a receiver's host name, and the time limits of a try to reach it."""

import asyncio
import socket
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

Lookup: TypeAlias = Callable[[str, int], Awaitable[Sequence[str]]]
"""Returns the addresses of a host name, for a port. Raises OSError if it has none."""


async def system_lookup(host: str, port: int) -> Sequence[str]:
    """Resolve a host name with the resolver of the operating system."""
    found = await asyncio.get_running_loop().getaddrinfo(
        host, port, type=socket.SOCK_STREAM, flags=socket.AI_ADDRCONFIG
    )
    return [str(address[0]) for *_, address in found]


@dataclass(frozen=True, slots=True)
class SendTimeouts:
    """The timeouts of one try, in seconds; `connect` includes resolving the host name."""

    connect: float = 5.0
    total: float = 10.0
