"""Turns at a job: one after another for each job, independently of all others."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from proxy.jobs.model import JobId


@dataclass(slots=True)
class _Turn:
    """The users of one job."""

    lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    users: int = 0


class JobTurns:
    """One lock per job, kept while a task has the job or waits for it.

    The length is the number of these jobs.
    """

    def __init__(self) -> None:
        self._turns: dict[JobId, _Turn] = {}

    def __len__(self) -> int:
        return len(self._turns)

    @asynccontextmanager
    async def alone(self, job_id: JobId) -> AsyncIterator[None]:
        """Wait until no one else has a turn at this job."""
        turn = self._turns.setdefault(job_id, _Turn())
        turn.users += 1
        try:
            async with turn.lock:
                yield
        finally:
            turn.users -= 1
            if not turn.users:
                del self._turns[job_id]
