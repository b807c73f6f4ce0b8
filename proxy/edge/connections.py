"""Everyone who is connected: how many there may be, and who has been waited for long enough.

A connection costs a descriptor and some memory before anything is known about it. So there is a most of them, and a few
beyond that only for workers, who must get in and out also when clients fill the house.
"""

import asyncio
import resource
from dataclasses import dataclass
from typing import Protocol

LOOK_SECONDS = 0.5
AT_ONCE = 50  # looks in one turn of the event loop: thousands may be late at the same moment, and others must not be
OWN_DESCRIPTORS = 128  # for the store, webhooks, logs and local workers
RESERVED_SHARE = 8  # one in so many places is for workers only
LEAST_RESERVED = 32
HURRY_SECONDS = 2.0  # for a head on a place that is for workers


@dataclass(frozen=True, slots=True)
class Pace:
    """How slow a client may be, in seconds."""

    head: float = 10.0  # until a head is whole
    body: float = 10.0  # in which a body brings a KB for each second
    whole: float = 120.0  # until a body is whole: others cannot have the room that it has paid for


class Watched(Protocol):
    """A connection that is waited for."""

    def look(self, now: float) -> None:
        """Judge it: `now` is the event loop's time."""
        ...

    def evict(self) -> bool:
        """Cut it if nothing of it is being served, and say whether it was."""
        ...


class ConnectionLimiter:
    """The connections. `most`: of clients; workers have some places more."""

    def __init__(self, most: int) -> None:
        self.most = most
        self.limit = most + max(LEAST_RESERVED, most // RESERVED_SHARE)
        self.size = 0
        self._waited_for: dict[Watched, None] = {}  # those who wait longest are the first

    def enter(self) -> None:
        """One more has come."""
        self.size += 1

    def leave(self) -> None:
        """One has gone, or has become a worker's channel, which is counted with the workers."""
        self.size -= 1

    def __contains__(self, one: object) -> bool:
        return one in self._waited_for

    def watch(self, one: Watched) -> None:
        """Look after this one."""
        self._waited_for.setdefault(one)

    def unwatch(self, one: Watched) -> None:
        """It is not waited for."""
        self._waited_for.pop(one, None)

    def evict(self) -> bool:
        """Cut the connection that has been silent for longest: whoever comes may have something to say."""
        return any(one.evict() for one in tuple(self._waited_for))

    async def serve(self) -> None:
        """Look at those who are waited for, for ever."""
        loop = asyncio.get_running_loop()
        while True:
            await asyncio.sleep(LOOK_SECONDS)
            now = loop.time()
            for number, one in enumerate(tuple(self._waited_for), 1):
                if one in self._waited_for:
                    one.look(now)
                if number % AT_ONCE == 0:
                    await asyncio.sleep(0)


def places(wanted: int | None) -> int:
    """How many clients may be connected at once: as many as there are descriptors for, or fewer if so wanted.

    The process first gets as many descriptors as the system lets it have.
    """
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    most = max(1, (hard - OWN_DESCRIPTORS) * RESERVED_SHARE // (RESERVED_SHARE + 1))
    return most if wanted is None else min(most, wanted)
