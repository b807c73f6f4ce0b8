"""What a stock worker was given, and what can be known of it from its polls and pings. Times are arguments.

It carries no attempt, so the map from its jobs to their attempts is here. And it does not say when it drops a job: that
is read from a poll that says it has none, or from two pings in a row that do not list it.
"""

import asyncio
from dataclasses import dataclass, field
from typing import NamedTuple

from proxy.channel.stock.answers import Answer
from proxy.jobs.model import JobId

MISSES = 2  # pings in a row without a job that it was given
SETTLE_SECONDS = 1.0  # what it asks for later than that after an answer, it asks for because it has read the answer
MOST_DROPPED = 1_000


@dataclass(slots=True)
class Run:
    """A job that it was given."""

    attempt: int
    answer: Answer | None  # of an OpenAI call
    given_at: float = float("inf")  # when the answer to its poll was written
    has_arrived: bool = False  # it has shown that it has it
    misses: int = 0
    is_stopped: bool = False
    is_ending: bool = False
    flow: asyncio.Event = field(default_factory=asyncio.Event)  # cleared: its output has to wait


class Vanished(NamedTuple):
    """A job that it has no more, and of which no result came. `counts`: it seems to have run."""

    job_id: JobId
    run: Run
    counts: bool


class Holdings:
    """The runs of one stock worker."""

    def __init__(self) -> None:
        self.runs: dict[JobId, Run] = {}
        self._pinged_at = float("-inf")
        self._listed: frozenset[str] = frozenset()  # by its last ping
        self._over: frozenset[str] = frozenset()  # it has said itself that it has these no more, whatever a ping says
        self._left: set[str] = set()  # it had them when it was last lost
        self._dropped: set[str] = set()  # they have vanished in it before

    def may_have(self, job_id: JobId) -> bool:
        """Whether it can be given this job. Not while it may have it from before: its results name no attempt."""
        return job_id not in self.runs and job_id not in self._listed and job_id not in self._left

    def give(self, job_id: JobId, run: Run) -> None:
        """It is being given a job."""
        run.flow.set()
        self.runs[job_id] = run
        self._over -= {job_id}

    def lose(self) -> None:
        """It was lost. What it had, others have now."""
        self._left |= set(self.runs)
        self.runs = {}

    def idles(self, died_at: float) -> list[Vanished]:
        """It says that it has no job: what it was given is over, whether its pings know that yet or not."""
        gone = [job_id for job_id, run in self.runs.items() if run.given_at < float("inf") and not run.is_ending]
        self._over = self._listed | set(gone)
        self._listed = frozenset()
        self._left.clear()
        return [self._vanish(job_id, died_at) for job_id in gone]

    def pinged(self, listed: frozenset[str], now: float, asked_at: float, died_at: float) -> list[Vanished]:
        """A ping came, which lists what it has. `asked_at`: when its working process was last heard of."""
        listed -= self._over
        gone = []
        for job_id, run in self.runs.items():
            if job_id in listed:
                run.has_arrived, run.misses = True, 0
                continue
            has_read = run.has_arrived or asked_at > run.given_at + SETTLE_SECONDS
            if has_read and run.given_at < self._pinged_at and not run.is_ending:
                run.misses += 1
                if run.misses >= MISSES or run.is_stopped:
                    gone.append(job_id)
        self._left &= listed
        self._listed, self._pinged_at = listed, now
        return [self._vanish(job_id, died_at) for job_id in gone]

    def _vanish(self, job_id: JobId, died_at: float) -> Vanished:
        """A loss counts, unless the job seems not to have reached it at all: then it was the way that failed."""
        run = self.runs.pop(job_id)
        has_run = run.has_arrived or run.given_at < died_at or job_id in self._dropped
        if len(self._dropped) >= MOST_DROPPED:
            self._dropped.clear()
        self._dropped.add(job_id)
        return Vanished(job_id, run, has_run and not run.is_stopped)
