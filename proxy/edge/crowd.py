"""Everyone who is connected: how many there may be, and who has been waited for long enough.

A connection costs a descriptor and some memory before anything is known about it. So there is a most of them, and a few
beyond that only for workers, who must get in and out also when clients fill the house.
"""

import asyncio
import resource
from dataclasses import dataclass
from typing import Protocol

LOOK_SECONDS = 0.5
OWN_DESCRIPTORS = 128  # for the store, webhooks, logs and local workers
RESERVED_SHARE = 8  # one in so many places is for workers only
LEAST_RESERVED = 32
HURRY_SECONDS = 2.0  # for a head on a place that is for workers


@dataclass(frozen=True, slots=True)
class Pace:
    """How slow a client may be, in seconds."""

    head: float = 10.0  # until a head is whole
    body: float = 10.0  # in which a body brings a KB for each second


class Watched(Protocol):
    """A connection that is waited for."""

    def look(self, now: float) -> None:
        """Judge it: `now` is the event loop's time."""
        ...


class Crowd:
    """The connections. `most`: of clients; workers have some places more."""

    def __init__(self, most: int) -> None:
        self.most = most
        self.limit = most + max(LEAST_RESERVED, most // RESERVED_SHARE)
        self.size = 0
        self.waited_for: set[Watched] = set()

    def enter(self) -> None:
        """One more has come."""
        self.size += 1

    def leave(self) -> None:
        """One has gone, or has become a worker's channel, which is counted with the workers."""
        self.size -= 1

    async def serve(self) -> None:
        """Look at those who are waited for, for ever."""
        loop = asyncio.get_running_loop()
        while True:
            await asyncio.sleep(LOOK_SECONDS)
            now = loop.time()
            for one in tuple(self.waited_for):
                one.look(now)


def places(wanted: int | None) -> int:
    """How many clients may be connected at once: as many as there are descriptors for, or fewer if so wanted.

    The process first gets as many descriptors as the system lets it have.
    """
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    most = max(1, (hard - OWN_DESCRIPTORS) * RESERVED_SHARE // (RESERVED_SHARE + 1))
    return most if wanted is None else min(most, wanted)
