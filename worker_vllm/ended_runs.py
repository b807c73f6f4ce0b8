"""The runs that have just ended, whose `End` may be lost with the connection.

The socket accepts an `End` although the connection may be broken. A worker that listed only the
runs that it still has could not be distinguished from one that never received the job.
"""

from collections import OrderedDict
from collections.abc import Callable, Container
from typing import NamedTuple

from proxy.wire.frames import Hold
from proxy.wire.outbox import Outbox
from worker_vllm.run import Run

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
