"""A run is one attempt of one job in this worker, from its first frame to its `End`.

    ARRIVING ──▶ STARTING ──▶ RUNNING ──▶ ANSWERING ──▶ ENDED
        │            │           │            │           ▲
        │            │           └──▶ STOPPING ◀──┘──────▶│
        └────────────┴────────────────────────────────────┘

`TRANSITIONS` is the complete table. An event that is absent for a phase changes nothing: a late
frame is a result, not an error.

The runs that have just ended are remembered, because the socket accepts an `End` although the
connection may be broken. A worker that listed only the runs that it still has could not be
distinguished from one that never received the job.
"""

import asyncio
from collections import OrderedDict
from collections.abc import Callable, Container
from dataclasses import dataclass, field
from enum import Enum, auto
from typing import NamedTuple

from proxy.wire.flow import SendFlow
from proxy.wire.frames import Body, End, Ending, Hold, Job
from proxy.wire.outbox import Outbox
from worker_vllm.asgi import Request

MESSAGE_CHARACTERS = 2_000
# The limits of the proxy for request bodies are lower.
BODY_MAX_BYTES = 64 * 1024 * 1024


class Phase(Enum):
    """The state of a run."""

    ARRIVING = auto()
    """Its body is still being received."""
    STARTING = auto()
    """The body is complete and its task exists, but the task has not made its first step."""
    RUNNING = auto()
    """The engine works on it; no output exists yet."""
    ANSWERING = auto()
    """At least one byte of output exists."""
    STOPPING = auto()
    """It was stopped by a decision outside the engine, which has not released it yet."""
    ENDED = auto()
    """Its `End` is in the outbox."""


class RunEvent(Enum):
    """A cause for a new phase."""

    COMPLETE_BODY = auto()
    BEGIN = auto()
    ANSWER = auto()
    STOP = auto()
    END = auto()


TRANSITIONS: dict[tuple[Phase, RunEvent], Phase] = {
    (Phase.ARRIVING, RunEvent.COMPLETE_BODY): Phase.STARTING,
    (Phase.ARRIVING, RunEvent.STOP): Phase.ENDED,
    (Phase.ARRIVING, RunEvent.END): Phase.ENDED,
    (Phase.STARTING, RunEvent.BEGIN): Phase.RUNNING,
    (Phase.STARTING, RunEvent.STOP): Phase.ENDED,
    (Phase.RUNNING, RunEvent.ANSWER): Phase.ANSWERING,
    (Phase.RUNNING, RunEvent.STOP): Phase.STOPPING,
    (Phase.RUNNING, RunEvent.END): Phase.ENDED,
    (Phase.ANSWERING, RunEvent.STOP): Phase.STOPPING,
    (Phase.ANSWERING, RunEvent.END): Phase.ENDED,
    (Phase.STOPPING, RunEvent.END): Phase.ENDED,
}

NOT_BEGUN = (Phase.ARRIVING, Phase.STARTING)
IN_ENGINE = (Phase.STARTING, Phase.RUNNING, Phase.ANSWERING, Phase.STOPPING)


class BadBodyError(ValueError):
    """The parts of a body do not add up to the size that the job announced."""


@dataclass(slots=True)
class Run:
    """The worker's record of a run.

    `origin` is the outbox of the connection that the job came from.
    """

    job: Job
    origin: Outbox
    phase: Phase = Phase.ARRIVING
    body: bytearray = field(default_factory=bytearray)
    task: "asyncio.Task[None] | None" = None
    verdict: End | None = None
    """The end of the run, once a decision outside the engine has been made."""
    frames_sent: int = 0
    """Frames of this run that were handed to the socket, as `Hello` reports them."""
    flow: SendFlow = field(default_factory=SendFlow)
    is_in_event: bool = False
    """True after a part of an event was sent, while more of it follows."""
    may_continue: asyncio.Event = field(default_factory=asyncio.Event)
    """Set while the run does not wait for its receiver."""

    def __post_init__(self) -> None:
        self.may_continue.set()

    def advance(self, event: RunEvent) -> bool:
        """Change the phase according to the table.

        Returns False, and changes nothing, if the table has no entry.
        """
        target = TRANSITIONS.get((self.phase, event))
        if target is None:
            return False
        self.phase = target
        return True

    @property
    def waits_for_engine(self) -> bool:
        """True if this run waits for the engine, and not for the receiver of its output."""
        return self.phase in IN_ENGINE and self.may_continue.is_set()

    def end(self, ending: Ending, code: str = "", message: str = "") -> End:
        """Return the last frame of this run."""
        return End(self.job.job, self.job.attempt, ending, code, message[:MESSAGE_CHARACTERS])

    def add(self, part: Body) -> bool:
        """Append a part of the body; return True when it is complete. Raises `BadBodyError`."""
        self.body += part.data
        if len(self.body) > self.job.size or (not part.more and len(self.body) != self.job.size):
            raise BadBodyError(f"{len(self.body)} bytes of a body of {self.job.size}")
        return not part.more

    def request(self) -> Request:
        """Return the request for the engine, and release the body's buffer."""
        body = bytes(self.body)
        self.body.clear()
        return Request(self.job.method, self.job.path, self.job.content_type, body)


# A broken connection is detected within 30 s, and closed 2 s later (see `channel.dial`).
ENDED_SECONDS = 40.0
ENDED_MAX_RUNS = 1_000


class EndedRun(NamedTuple):
    """A run whose `End` was handed to the socket at this time of the event loop."""

    hold: Hold
    origin: Outbox
    at: float


class EndedRuns:
    """The latest ended runs, in the order of their ends."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._runs: OrderedDict[str, EndedRun] = OrderedDict()

    def add(self, run: Run) -> None:
        """Add a run whose `End` was handed to the socket."""
        job = run.job.job
        self._runs.pop(job, None)
        hold = Hold(job, run.job.attempt, run.frames_sent)
        self._runs[job] = EndedRun(hold, run.origin, self._clock())
        self._evict()

    def confirm(self, job: str) -> None:
        """Forget a run: the proxy knows that it has ended."""
        self._runs.pop(job, None)

    def recent(self, origin: Outbox, besides: Container[str]) -> list[Hold]:
        """Return the runs of a connection that have just ended, except jobs that run again."""
        self._evict()
        return [
            each.hold
            for job, each in self._runs.items()
            if each.origin is origin and job not in besides
        ]

    def _evict(self) -> None:
        oldest = self._clock() - ENDED_SECONDS
        while self._runs:
            first = next(iter(self._runs.values()))
            if len(self._runs) <= ENDED_MAX_RUNS and first.at >= oldest:
                return
            self._runs.popitem(last=False)
