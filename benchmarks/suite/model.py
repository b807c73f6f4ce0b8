"""The declarations of which the table of rows consists."""

from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

Figures: TypeAlias = dict[str, float]
"""The values that one round has measured of one side. Their names end in the unit."""


class Unit(StrEnum):
    """The unit by which CPU time is divided."""

    REQUEST = "request"
    EVENT = "event"


class Comparison(StrEnum):
    """The comparison of our figure with that of a peer."""

    RATIO = "ratio"
    DIFFERENCE = "difference"
    ABSOLUTE = "absolute"


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """The requests of the load generator in one round.

    `rate` is in requests per second, independent of the responses; with 0 each connection sends its
    next request when the response to the last one is complete.
    """

    connections: int
    seconds: float = 0.0
    body: Mapping[str, Any] | None
    path: str = "/v1/chat/completions"
    is_stream: bool = False
    rate: float = 0.0
    # Ends the load instead of `seconds`, if it is not 0.
    requests: int = 0
    warm_up_seconds: float = 0.5
    ramp_seconds: float = 0.0
    drain_seconds: float = 5.0


@dataclass(frozen=True, slots=True)
class Goal:
    """A bound for a figure of ours.

    `figure` is compared with the same figure of `peer`, as `kind` says. With `is_minimum`, the
    value must not be below `limit`; otherwise it must not be above it. A value that misses a
    maximum counts as met if the figure itself is at most `or_at_most`.
    """

    figure: str
    limit: float
    peer: str = ""
    kind: Comparison = Comparison.RATIO
    is_minimum: bool = False
    stretch: float | None = None
    or_at_most: float | None = None
    # Not the median must meet the limit, but the near end of the 95 % interval of the median.
    is_by_interval: bool = False


class Check(NamedTuple):
    """A ratio that `bench-quick` compares with the committed one: our figure to that of a peer.

    Smaller figures are better.
    """

    figure: str
    peer: str


@dataclass(frozen=True, slots=True)
class RunningSide:
    """A running server to measure: its port, and its processes by role.

    The CPU time of the process `server` and its descendants is reported as `cpu_us`, that of each
    other one as `NAME_cpu_us`. `headers` are added to every request. `started_seconds` is the time
    from the start of the server until it served requests.
    """

    port: int
    pids: Mapping[str, int]
    headers: tuple[str, ...] = ()
    started_seconds: float = 0.0


class NotInstalledError(Exception):
    """A peer is not installed. The text is the command that installs it."""


@dataclass(slots=True)
class Rig:
    """The programs and folders of a run. `folder` is temporary."""

    folder: Path
    loadgen: Path
    mock: Path
    # The folder of the peers' environments.
    environments: Path


Opening: TypeAlias = Callable[[Rig], AbstractAsyncContextManager[RunningSide]]
Measure: TypeAlias = Callable[[Rig, RunningSide, "Row"], Awaitable[Figures]]


class Side(NamedTuple):
    """A server to measure, and the function that starts it. NotInstalledError if it cannot."""

    name: str
    open: Opening


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One row of the table: a load, the sides that receive it in turns, and the goals.

    The first side is the one whose figures the goals concern. `worker` says what answers the
    requests behind our proxy.
    """

    name: str
    title: str
    worker: str
    load: Load
    sides: Sequence[Side]
    measure: Measure
    goals: Sequence[Goal] = ()
    checks: Sequence[Check] = ()
    unit: Unit = Unit.REQUEST
    rounds: int = 5
    # Rounds before the first one, whose figures are discarded.
    warm_up_rounds: int = 0
    # The servers are started for each round again, because memory is measured.
    is_fresh: bool = False
    # Runs only if it is named in ONLY, because it takes long.
    is_optional: bool = False


@dataclass(slots=True)
class Measured:
    """The figures of a row, by side; one element per round. `not_run` has the reasons by side."""

    rounds: dict[str, list[Figures]] = field(default_factory=dict)
    not_run: dict[str, str] = field(default_factory=dict)
