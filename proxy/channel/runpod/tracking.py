"""Tracking of a Runpod worker's runs and liveness by its polls, pings and connections.

Nothing in this module reads the clock: times are arguments.

Runs: the worker's requests name no attempt, so the map from its jobs to their attempts is kept
here. The worker does not report a dropped job either. A drop is inferred from a poll that reports
no jobs, or from two consecutive pings that do not list the job.

Liveness: pings alone are not evidence, since they come from a process that outlives the worker
process. Neither are connections alone: a handler that blocks its event loop does not poll for
minutes. Therefore a ping renews the lease as long as the worker process has not closed its
connections in a way that indicates its death. A worker that closes its idle connections normally
(it drains, or its SDK is too old to poll for stops) keeps its lease by pings.
"""

import asyncio
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

from proxy.channel.runpod.comparison import PostedElements
from proxy.channel.runpod.openai import Answer
from proxy.jobs.model import JobId

# The ASGI extension that holds the connection of a request.
CONNECTION = "vllm_serverless.line"

# HTTP clients close connections that were idle for some time (the SDK's: 15 s), so the close of a
# connection that was idle for longer than this is not evidence.
HOUSEKEEPING_SECONDS = 14.0


class Closing(NamedTuple):
    """The circumstances of the end of a connection."""

    is_ours: bool
    """Closed by this side."""
    is_reset: bool
    """The peer was gone with bytes unread."""
    idle: float | None
    """Seconds since the last response; None during a request."""

    @property
    def is_abrupt(self) -> bool:
        """Return True if the connection ended as if the peer process had exited."""
        return not self.is_ours and (
            self.is_reset or self.idle is None or self.idle < HOUSEKEEPING_SECONDS
        )


OnClosed = Callable[[Closing], None]


class WatchedConnection(Protocol):
    """A connection that reports its end."""

    def watch(self, on_closed: OnClosed) -> None:
        """Keep the connection open, and call `on_closed` when it ends."""
        ...


# The connections of a process that exits are closed one after the other, within this time.
TOGETHER_SECONDS = 1.0


@dataclass(frozen=True, slots=True)
class RunpodTimeouts:
    """The timeouts for Runpod workers, in seconds."""

    poll_seconds: float = 20.0
    """The duration of a long poll; the SDK times out after 90 s."""
    lease_seconds: float = 35.0
    """Slightly more than three ping intervals of the SDK."""
    gap_seconds: float = 10.0
    """The time until a process whose connections broke is declared lost."""


@dataclass(slots=True)
class Liveness:
    """The evidence of a worker's liveness. Times are those of the event loop."""

    heard: float
    connections: int = 0
    """The open connections of its worker process."""
    left_at: float = 0.0
    """The time at which the last of them closed."""
    abrupt_at: float = float("-inf")
    """The time of the last abrupt close."""
    died_at: float = float("-inf")
    """The last time at which the process looked dead."""

    def opened(self) -> None:
        """Count a new connection of the worker process."""
        self.connections += 1

    def closed(self, closing: Closing, now: float) -> None:
        """Record the end of one of these connections."""
        self.connections -= 1
        if closing.is_abrupt:
            self.abrupt_at = now
        if self.connections == 0:
            self.left_at = now
            if self._looks_dead:
                self.died_at = now

    def restart(self, now: float) -> None:
        """Start the lease, and the time to reconnect, again."""
        self.heard = now
        if not self.connections:
            self.abrupt_at += now - self.left_at
            self.left_at = now

    def loss(self, now: float, timeouts: RunpodTimeouts) -> str:
        """Return the reason why the worker is lost, or an empty string."""
        if not self.connections and self._looks_dead and now - self.left_at > timeouts.gap_seconds:
            return "its process ended"
        if now - self.heard > timeouts.lease_seconds:
            return f"silent for {timeouts.lease_seconds:g} s"
        return ""

    @property
    def _looks_dead(self) -> bool:
        return self.left_at - self.abrupt_at <= TOGETHER_SECONDS


# The number of consecutive pings without an assigned job after which the job counts as dropped.
DROP_PINGS = 2
# A request sent more than this time after a response proves that the worker has read the response.
SETTLE_SECONDS = 1.0
MAX_DROPPED_JOBS = 1_000
# A worker that is never idle and does not ping reports no end of a job.
MAX_LEFT_JOBS = 1_000


@dataclass(slots=True)
class Run:
    """A job that was assigned to a worker."""

    attempt: int
    answer: Answer | None
    """For OpenAI calls only."""
    given_at: float = float("inf")
    """The time at which the poll response was written."""
    has_arrived: bool = False
    """The worker has confirmed that it has the job."""
    misses: int = 0
    """The consecutive pings that did not list the job."""
    is_stopped: bool = False
    is_ending: bool = False
    is_unwritten: bool = False
    """Its end could not be written to the store."""
    flow: asyncio.Event = field(default_factory=asyncio.Event)
    """Cleared while output is paused."""
    posted: PostedElements = field(default_factory=PostedElements)


class VanishedRun(NamedTuple):
    """A job that the worker dropped without a result. `counts`: it was probably started."""

    job_id: JobId
    run: Run
    counts: bool


class TrackedRuns:
    """The runs of one Runpod worker."""

    def __init__(self) -> None:
        self.runs: dict[JobId, Run] = {}
        self._pinged_at = float("-inf")
        # The jobs of the last ping.
        self._listed: frozenset[str] = frozenset()
        # The jobs that the worker has reported as finished, even if a later ping lists them.
        self._over: frozenset[str] = frozenset()
        # The jobs of the last ping that are not assigned to the worker.
        self._foreign: frozenset[str] = frozenset()
        # The jobs without a run that the worker may still have, and the times of the ends of their
        # runs: those that it had when it was last lost, and those whose result has arrived. It
        # posts the result again if the response is lost.
        self._left: dict[str, float] = {}
        # The jobs that the worker has dropped before, and whether the last drop counted as a loss.
        self._dropped: dict[str, bool] = {}

    def may_have(self, job_id: JobId) -> bool:
        """Return True if the job may be assigned to the worker.

        It may not while the worker may still have an earlier attempt: results name no attempt.
        """
        return job_id not in self.runs and job_id not in self._listed and job_id not in self._left

    def give(self, job_id: JobId, run: Run) -> None:
        """Add a run that is being assigned to the worker."""
        run.flow.set()
        self.runs[job_id] = run
        self._over -= {job_id}

    def forget_loss(self, job_id: JobId) -> bool:
        """Return True if a drop of this job by the worker has counted as a loss, once for each."""
        counted = self._dropped.get(job_id, False)
        if counted:
            self._dropped[job_id] = False
        return counted

    def restart(self, now: float) -> None:
        """Ignore the evidence so far about jobs that the worker may not have: after a pause of the
        proxy, a request can have waited longer in its socket than a response.
        """
        for run in self.runs.values():
            run.misses = 0
            run.given_at = max(run.given_at, now)
        self._left = dict.fromkeys(self._left, now)

    def expect(self, jobs: Iterable[JobId], now: float) -> None:
        """Note jobs that the worker may still have from before the start of the proxy."""
        self._left |= dict.fromkeys(jobs, now)

    def lose(self, now: float) -> None:
        """Remove all runs of a lost worker. Other workers take its jobs."""
        self._left |= dict.fromkeys(self.runs, now)
        self.runs = {}

    def end(self, job_id: JobId, now: float) -> None:
        """Remove a run whose result has arrived."""
        del self.runs[job_id]
        if len(self._left) >= MAX_LEFT_JOBS:
            self._left.clear()
        self._left[job_id] = now

    def on_idle_poll(self, died_at: float) -> list[VanishedRun]:
        """Remove and return the assigned runs, since the worker reports that it has no job.

        Pings may still list them.
        """
        gone = [
            job_id
            for job_id, run in self.runs.items()
            if run.given_at < float("inf") and not run.is_ending
        ]
        self._over = self._listed | set(gone)
        self._listed = frozenset()
        self._left.clear()
        return [self._vanish(job_id, died_at) for job_id in gone]

    def on_ping(
        self, listed: frozenset[str], now: float, asked_at: float, died_at: float
    ) -> list[VanishedRun]:
        """Process a ping, which lists the worker's jobs; return the runs that it has dropped.

        `asked_at`: the time of the last request from its worker process.
        """
        listed -= self._over
        gone = []
        for job_id, run in self.runs.items():
            if job_id in listed:
                run.has_arrived, run.misses = True, 0
                continue
            has_read = run.has_arrived or asked_at > run.given_at + SETTLE_SECONDS
            if has_read and run.given_at < self._pinged_at and not run.is_ending:
                run.misses += 1
                if run.misses >= DROP_PINGS or run.is_stopped:
                    gone.append(job_id)
        # A ping that was sent before the response to a poll does not list its jobs either.
        self._left = {
            job_id: at
            for job_id, at in self._left.items()
            if job_id in listed or now < at + SETTLE_SECONDS
        }
        self._listed, self._pinged_at = listed, now
        return [self._vanish(job_id, died_at) for job_id in gone]

    def on_foreign(self, listed: frozenset[str]) -> frozenset[str]:
        """Return the jobs of a ping that are not assigned to the worker, as at the ping before.

        The worker got them before it was lost, or before a restart of the proxy. One ping alone can
        list a job whose result arrived before it.
        """
        before = self._foreign
        self._foreign = listed - self._over - self.runs.keys()
        return self._foreign & before

    def _vanish(self, job_id: JobId, died_at: float) -> VanishedRun:
        """Remove a run. The loss counts unless the job was probably not delivered to the worker."""
        run = self.runs.pop(job_id)
        has_run = run.has_arrived or run.given_at < died_at or job_id in self._dropped
        if len(self._dropped) >= MAX_DROPPED_JOBS:
            self._dropped.clear()
        counts = has_run and not run.is_stopped
        self._dropped[job_id] = counts
        return VanishedRun(job_id, run, counts)
