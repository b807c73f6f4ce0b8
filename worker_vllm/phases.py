"""The phases of a run, and the events that change them.

    ARRIVING ──▶ STARTING ──▶ RUNNING ──▶ ANSWERING ──▶ ENDED
        │            │           │            │           ▲
        │            │           └──▶ STOPPING ◀──┘──────▶│
        └────────────┴────────────────────────────────────┘

`TRANSITIONS` is the complete table. An event that is absent for a phase changes nothing: a late
frame is a result, not an error.
"""

from enum import Enum, auto


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
