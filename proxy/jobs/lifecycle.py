"""The lifecycle of a job, as one table. Every change of a job's status is taken from it.

Rule 1: each event has exactly one target. Every write of a store is therefore one conditional
write, "set the status to the event's target if it is one of the event's sources", and the number
of changed rows is the verdict. No code reads a status, decides, and then writes, so two events
that race cannot both take effect.

Rule 2: a pair of status and event that is not in the table is illegal. Only `retry` leaves a
terminal status, so the first end of a job is final.

Rule 3: an event that arrives too late is normal, for example when a worker finishes a job that has
just been cancelled. It gives the result `None` and changes nothing; it is not an error.

Rule 4: `run` is the fencing token: a random number, new at every `take` and when a run is adopted
after a restart of the proxy. Every write about a run carries it, and a write with an earlier number
changes nothing. `attempt` counts the runs; it grows at every `take` and never decreases; `retry`
keeps it. Messages of a worker name their attempt, and one with an older attempt is ignored.
`failures` is a different number: it counts the lost runs since the job was submitted or retried.
After `policy.MAX_LOST_RUNS` lost runs the job fails.

`scripts/draw_lifecycle.py` generates `docs/lifecycle.md` from this table, and a test checks that
the page is up to date.
"""

from enum import StrEnum, unique
from typing import NamedTuple


@unique
class Status(StrEnum):
    """The status of a job, with the names of the public API."""

    IN_QUEUE = "IN_QUEUE"
    IN_PROGRESS = "IN_PROGRESS"
    COMPLETED = "COMPLETED"
    FAILED = "FAILED"
    CANCELLED = "CANCELLED"
    TIMED_OUT = "TIMED_OUT"


@unique
class Event(StrEnum):
    """An event that can change the status of a job."""

    # The dispatcher hands the job to a worker.
    TAKE = "take"
    # The worker has finished the job.
    COMPLETE = "complete"
    # The worker reports a failure, or too many runs of the job were lost.
    FAIL = "fail"
    # The worker was lost or has returned the job, which goes back to the front of the queue.
    RELEASE = "release"
    # The client has cancelled the job or, for an interactive job, has disconnected.
    CANCEL = "cancel"
    # A deadline has passed.
    EXPIRE = "expire"
    # The client has asked to run the job again.
    RETRY = "retry"


class Transition(NamedTuple):
    """The statuses in which an event is legal, and the status after it."""

    sources: frozenset[Status]
    target: Status


def _transition(*sources: Status, to: Status) -> Transition:
    return Transition(frozenset(sources), to)


TRANSITIONS: dict[Event, Transition] = {
    Event.TAKE: _transition(Status.IN_QUEUE, to=Status.IN_PROGRESS),
    Event.COMPLETE: _transition(Status.IN_PROGRESS, to=Status.COMPLETED),
    Event.FAIL: _transition(Status.IN_PROGRESS, to=Status.FAILED),
    Event.RELEASE: _transition(Status.IN_PROGRESS, to=Status.IN_QUEUE),
    Event.CANCEL: _transition(Status.IN_QUEUE, Status.IN_PROGRESS, to=Status.CANCELLED),
    Event.EXPIRE: _transition(Status.IN_QUEUE, Status.IN_PROGRESS, to=Status.TIMED_OUT),
    Event.RETRY: _transition(Status.FAILED, Status.TIMED_OUT, to=Status.IN_QUEUE),
}

TERMINAL = frozenset(Status) - {Status.IN_QUEUE, Status.IN_PROGRESS}


def advance(status: Status, event: Event) -> Status | None:
    """Return the status after an event, or None if the event is illegal in this status."""
    transition = TRANSITIONS[event]
    return transition.target if status in transition.sources else None


def mermaid() -> str:
    """Return the table as a Mermaid state diagram, for the documentation."""
    lines = ["stateDiagram-v2", f"    [*] --> {Status.IN_QUEUE}: submit"]
    for event, transition in TRANSITIONS.items():
        sources = sorted(transition.sources)
        lines += [f"    {source} --> {transition.target}: {event}" for source in sources]
    lines += [f"    {status} --> [*]: forget" for status in sorted(TERMINAL)]
    return "\n".join(lines) + "\n"
