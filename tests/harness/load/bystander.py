"""A well-behaved client in its own process, and its waiting times while others misbehave."""

import http.client
import json
import select
import sys
import time
from asyncio import create_subprocess_exec
from asyncio.subprocess import PIPE
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from urllib.parse import urlsplit

PAUSE_SECONDS = 0.02
TIMEOUT_SECONDS = 60.0
READY = b"asking\n"


@dataclass(slots=True)
class Waits:
    """The statuses and durations of the requests; available after the client has stopped.

    The durations are in seconds.
    """

    statuses: set[int] = field(default_factory=set)
    seconds: list[float] = field(default_factory=list)

    def p99(self) -> float:
        """The 99th percentile of the durations."""
        return sorted(self.seconds)[int(len(self.seconds) * 0.99)]


@asynccontextmanager
async def healthy(url: str) -> AsyncIterator[Waits]:
    """Send requests repeatedly, each on a new connection, until the context ends."""
    process = await create_subprocess_exec(
        sys.executable, "-I", __file__, url, stdin=PIPE, stdout=PIPE
    )
    waits = Waits()
    try:
        assert process.stdout is not None
        assert await process.stdout.readline() == READY
        yield waits
    finally:
        printed, _ = await process.communicate(b"")
    found = json.loads(printed)
    waits.statuses.update(found["statuses"])
    waits.seconds += found["seconds"]


def ask(url: str) -> None:
    """Send requests until stdin is closed; then report."""
    statuses: list[int] = []
    seconds: list[float] = []
    sys.stdout.buffer.write(READY)
    sys.stdout.flush()
    while not select.select([sys.stdin], [], [], PAUSE_SECONDS)[0]:
        began = time.monotonic()
        asking = http.client.HTTPConnection(urlsplit(url).netloc, timeout=TIMEOUT_SECONDS)
        asking.request("GET", "/v1/models")
        answer = asking.getresponse()
        answer.read()
        asking.close()
        statuses.append(answer.status)
        seconds.append(time.monotonic() - began)
    print(json.dumps({"statuses": sorted(set(statuses)), "seconds": seconds}))


if __name__ == "__main__":
    ask(sys.argv[1])
