"""The life of a job, as one table. Everything that changes a job's status goes through it.

Rule 1: each event has exactly one target. So every write of a store is one conditional write, "set the status to the
event's target where the status is one of its sources", and the number of rows it changed is the verdict. Nothing
reads, thinks and then writes, so two events that race cannot both win.

Rule 2: what is absent is illegal. A terminal status has no way out but `retry`, so the first end of a job is its end.

Rule 3: an event that comes too late is normal (a worker finishes what was just cancelled). It is a result, `None`, that
is counted; it is not an error.

Rule 4: the fence is `attempt`. It grows at every `take`, never falls, and also `retry` keeps it; a worker's events name
the attempt they belong to, and one that names an older attempt changes nothing. `failures` is another number: how
often a run was lost since the job was submitted or retried. `policy.py` gives up at three.

`docs/lifecycle.md` is drawn from this table by `scripts/draw_lifecycle.py`, and a test holds the two together.
"""

from enum import StrEnum, unique
from typing import NamedTuple


@unique
class Status(StrEnum):
    """Where a job stands; the names are the public API's."""

    IN_QUEUE = "IN_QUEUE"
    IN_PROGRESS = "IN_PROGRESS"
    COMPLETED = "COMPLETED"
    FAILED = "FAILED"
    CANCELLED = "CANCELLED"
    TIMED_OUT = "TIMED_OUT"


@unique
class Event(StrEnum):
    """What can happen to a job."""

    TAKE = "take"  # dispatch hands it to a worker
    COMPLETE = "complete"  # the worker finished it
    FAIL = "fail"  # the worker says so, or policy, when its runs were lost too often
    RELEASE = "release"  # back to the front of the queue: the worker was lost, or hands it back
    CANCEL = "cancel"  # the client asks, or has left
    EXPIRE = "expire"  # a deadline has passed
    RETRY = "retry"  # the client asks for another go


class Transition(NamedTuple):
    """An event may happen in these statuses and leads to that one."""

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
    """The status after the event, or None when the event cannot happen in this one."""
    transition = TRANSITIONS[event]
    return transition.target if status in transition.sources else None


def mermaid() -> str:
    """The table as a Mermaid state diagram, for the documentation."""
    arrows = [
        f"    {source} --> {transition.target}: {event}"
        for event, transition in TRANSITIONS.items()
        for source in sorted(transition.sources)
    ]
    starts = [f"    [*] --> {Status.IN_QUEUE}: submit"]
    ends = [f"    {status} --> [*]: forget" for status in sorted(TERMINAL)]
    return "\n".join(["stateDiagram-v2", *starts, *arrows, *ends]) + "\n"
