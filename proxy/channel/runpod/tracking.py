"""What a stock worker was given, and what can be known of it from its polls and pings. Times are arguments.

It carries no attempt, so the map from its jobs to their attempts is here. And it does not say when it drops a job: that
is read from a poll that says it has none, or from two pings in a row that do not list it.

Whether a stock worker lives: what its pings and its connections say, weighed.

Pings alone prove nothing, for they come from a process that outlives the one that works. Connections alone do neither:
a handler that blocks its event loop polls nothing for minutes. Together: a ping renews the lease as long as the working
process has not left its connections in a way that looks like its death. A worker that closes its idle connections in
peace (it drains, or its SDK is too old to poll for stops) lives by its pings.
"""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

from proxy.channel.runpod.openai import Answer
from proxy.jobs.model import JobId

CONNECTION = "vllm_serverless.line"  # the ASGI extension: the connection on which a request came


HOUSEKEEPING_SECONDS = (
    14.0  # HTTP clients close what was idle for some time (the SDK's after 15 s); that says nothing
)


class Closing(NamedTuple):
    """How a connection ended."""

    is_ours: bool  # this side closed it
    is_reset: bool  # the other end was gone with bytes unread
    idle: float | None  # seconds since the last answer; None: in the middle of a request

    @property
    def is_abrupt(self) -> bool:
        """Whether it looks as if the other process had ended."""
        return not self.is_ours and (
            self.is_reset or self.idle is None or self.idle < HOUSEKEEPING_SECONDS
        )


OnClosed = Callable[[Closing], None]


class WatchedConnection(Protocol):
    """A connection that can be watched."""

    def watch(self, on_closed: OnClosed) -> None:
        """Keep it open, and tell how it ends."""
        ...


TOGETHER_SECONDS = (
    1.0  # the connections of a process that ends are closed one after the other, but not slower
)


@dataclass(frozen=True, slots=True)
class RunpodTimeouts:
    """How many seconds stock workers are waited for."""

    hold: float = 20.0  # a poll is answered by then; the SDK gives one up after 90 s
    lease: float = 35.0  # three of the SDK's pings, and a bit
    gap: float = 10.0  # until a process whose connections broke counts as gone


@dataclass(slots=True)
class Liveness:
    """The evidence. Times are the event loop's."""

    heard: float
    lines: int = 0  # open connections of its working process
    left_at: float = 0.0  # when the last of them closed
    abrupt_at: float = float("-inf")  # when one last closed in a way that looks like death
    died_at: float = float("-inf")  # when it last looked dead altogether

    def opened(self) -> None:
        """The working process has made a connection."""
        self.lines += 1

    def closed(self, closing: Closing, now: float) -> None:
        """One of these connections has ended."""
        self.lines -= 1
        if closing.is_abrupt:
            self.abrupt_at = now
        if self.lines == 0:
            self.left_at = now
            if self._looks_dead:
                self.died_at = now

    def loss(self, now: float, patience: RunpodTimeouts) -> str:
        """Why it counts as lost; empty as long as it does not."""
        if not self.lines and self._looks_dead and now - self.left_at > patience.gap:
            return "its process ended"
        if now - self.heard > patience.lease:
            return f"silent for {patience.lease:g} s"
        return ""

    @property
    def _looks_dead(self) -> bool:
        return self.left_at - self.abrupt_at <= TOGETHER_SECONDS


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


class VanishedRun(NamedTuple):
    """A job that it has no more, and of which no result came. `counts`: it seems to have run."""

    job_id: JobId
    run: Run
    counts: bool


class TrackedRuns:
    """The runs of one stock worker."""

    def __init__(self) -> None:
        self.runs: dict[JobId, Run] = {}
        self._pinged_at = float("-inf")
        self._listed: frozenset[str] = frozenset()  # by its last ping
        self._over: frozenset[str] = (
            frozenset()
        )  # it has said itself that it has these no more, whatever a ping says
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

    def idles(self, died_at: float) -> list[VanishedRun]:
        """It says that it has no job: what it was given is over, whether its pings know that yet or not."""
        gone = [
            job_id
            for job_id, run in self.runs.items()
            if run.given_at < float("inf") and not run.is_ending
        ]
        self._over = self._listed | set(gone)
        self._listed = frozenset()
        self._left.clear()
        return [self._vanish(job_id, died_at) for job_id in gone]

    def pinged(
        self, listed: frozenset[str], now: float, asked_at: float, died_at: float
    ) -> list[VanishedRun]:
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

    def _vanish(self, job_id: JobId, died_at: float) -> VanishedRun:
        """A loss counts, unless the job seems not to have reached it at all: then it was the way that failed."""
        run = self.runs.pop(job_id)
        has_run = run.has_arrived or run.given_at < died_at or job_id in self._dropped
        if len(self._dropped) >= MOST_DROPPED:
            self._dropped.clear()
        self._dropped.add(job_id)
        return VanishedRun(job_id, run, has_run and not run.is_stopped)
