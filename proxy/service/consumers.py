"""Turns of the clients that consume the output of a job: each element is delivered once."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from proxy.jobs.model import JobId


@dataclass(slots=True)
class _Turn:
    """The clients of one job."""

    lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    clients: int = 0


class Consumers:
    """The jobs whose output is being consumed. Its length is their number."""

    def __init__(self) -> None:
        self._turns: dict[JobId, _Turn] = {}

    def __len__(self) -> int:
        return len(self._turns)

    @asynccontextmanager
    async def alone(self, job_id: JobId) -> AsyncIterator[None]:
        """Wait until no other client consumes the output of this job."""
        turn = self._turns.setdefault(job_id, _Turn())
        turn.clients += 1
        try:
            async with turn.lock:
                yield
        finally:
            turn.clients -= 1
            if not turn.clients:
                del self._turns[job_id]
