"""The connection limit, and the time limits of connections that have not sent a whole request.

A connection costs a file descriptor and some memory before anything is known about its client.
Connections are therefore capped. A few more are reserved for workers, so that workers can connect
and disconnect when clients have used up all others.
"""

import asyncio
import resource
from dataclasses import dataclass
from typing import Protocol

DEADLINE_CHECK_SECONDS = 0.5

# Connections checked in one turn of the event loop. Thousands can be late at the same moment, and
# closing them must not delay other requests.
DEADLINE_CHECKS_PER_TURN = 50

# File descriptors kept free for the store, webhooks, logs and local workers.
RESERVED_DESCRIPTORS = 128

# One connection is reserved for workers per this many client connections, but never fewer than
# the minimum.
CLIENTS_PER_RESERVED_CONNECTION = 8
MIN_RESERVED_CONNECTIONS = 32

# Time limit for the head of a request on a connection that is reserved for workers.
RESERVED_HEAD_SECONDS = 2.0


@dataclass(frozen=True, slots=True)
class Pace:
    """Time limits of a request, in seconds."""

    # Until the head is complete.
    head: float = 10.0
    # Window in which a body must arrive at 1 KB per second on average.
    body: float = 10.0
    # Until the body is complete. Until then it holds memory that other requests cannot use.
    whole: float = 120.0


class Watched(Protocol):
    """A connection that has a deadline."""

    def check_deadline(self, now: float) -> None:
        """Close or refuse the connection if its deadline has passed at `now` (loop time)."""
        ...

    def evict(self) -> bool:
        """Close the connection if it serves no request; return True if it was closed."""
        ...


class ConnectionLimiter:
    """Counts open connections and checks their deadlines.

    Attributes:
        client_limit: maximum number of connections of clients.
        limit: maximum number of connections, including those that are reserved for workers.
        size: number of open connections.

    """

    def __init__(self, client_limit: int) -> None:
        reserved = max(MIN_RESERVED_CONNECTIONS, client_limit // CLIENTS_PER_RESERVED_CONNECTION)
        self.client_limit = client_limit
        self.limit = client_limit + reserved
        self.size = 0
        # Used as an ordered set: the connections that have been watched longest come first.
        self._watched: dict[Watched, None] = {}

    def enter(self) -> None:
        """Count a new connection."""
        self.size += 1

    def leave(self) -> None:
        """Stop counting a connection: it was closed, or is now a worker's channel."""
        self.size -= 1

    def watch(self, connection: Watched) -> None:
        """Check the deadline of this connection from now on."""
        self._watched.setdefault(connection)

    def unwatch(self, connection: Watched) -> None:
        """Stop checking the deadline of this connection; a no-op if it is not watched."""
        self._watched.pop(connection, None)

    def evict(self) -> bool:
        """Close the connection that has been watched longest and serves no request; return False if
        there is none.

        This makes room for a new connection, which is more likely to send a request.
        """
        return any(connection.evict() for connection in tuple(self._watched))

    async def serve(self) -> None:
        """Check the deadlines of all watched connections periodically, until cancelled."""
        loop = asyncio.get_running_loop()
        while True:
            await asyncio.sleep(DEADLINE_CHECK_SECONDS)
            now = loop.time()
            for number, connection in enumerate(tuple(self._watched), 1):
                if connection in self._watched:
                    connection.check_deadline(now)
                if number % DEADLINE_CHECKS_PER_TURN == 0:
                    await asyncio.sleep(0)


def max_client_connections(wanted: int | None) -> int:
    """Raise the descriptor limit of the process; return the maximum number of client connections.

    The soft limit of file descriptors is raised to the hard limit. The result is the number of
    connections that this limit allows, or `wanted` if that is lower.
    """
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    per_reserved = CLIENTS_PER_RESERVED_CONNECTION
    possible = max(1, (hard - RESERVED_DESCRIPTORS) * per_reserved // (per_reserved + 1))
    return possible if wanted is None else min(possible, wanted)
