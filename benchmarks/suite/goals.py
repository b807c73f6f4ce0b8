"""The comparison of measured figures with the goals of their row."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from .model import Comparison, Figures, Goal
from .statistics import Interval, Spread, median_interval, spread

NAMES = {
    "cpu_us": "CPU µs per unit",
    "cpu": "load of its core",
    "load_core": "load of the other core",
    "worker_cpu_us": "worker's CPU µs per unit",
    "requests_per_second": "requests/s",
    "events_per_second": "events/s",
    "latency_p50_ms": "p50 ms",
    "latency_p99_ms": "p99 ms",
    "latency_p999_ms": "p99.9 ms",
    "first_p50_ms": "first event p50 ms",
    "first_p99_ms": "first event p99 ms",
    "gap_p99_ms": "gap p99 ms",
    "gap_max_ms": "longest gap ms",
    "transit_p99_ms": "event's way p99 ms",
    "transit_max_ms": "longest way of an event ms",
    "rss_mb": "memory MB",
    "idle_rss_mb": "idle memory MB",
    "stream_kb": "memory KB per open stream",
    "probe_p99_ms": "new request p99 ms",
    "delay_ms": "delay of running streams ms",
    "tokens_per_second": "tokens/s",
    "first_per_second": "1 / first event p50",
    "api_cpu_ms_per_1000_tokens": "CPU ms outside the engine per 1,000 tokens",
    "start_s": "start s",
    "lag_p999_ms": "`/livez` p99.9 ms",
    "lag_max_ms": "longest `/livez` ms",
    "control_lag_max_ms": "longest request to an idle process ms",
    "growth_mb": "growth of memory MB",
}


class GoalVerdict(NamedTuple):
    """A goal with the values of all rounds, the interval of their median, and the result."""

    goal: Goal
    values: Spread
    interval: Interval
    is_met: bool


def title(goal: Goal) -> str:
    """Return a goal in words, such as `CPU µs per unit ≤ 1.15 x nginx`."""
    name = NAMES.get(goal.figure, goal.figure)
    sign = "≥" if goal.is_minimum else "≤"
    bounds = {
        Comparison.RATIO: f"{goal.limit:g} x {goal.peer}",
        Comparison.DIFFERENCE: f"{goal.peer} + {goal.limit:g}",
        Comparison.ABSOLUTE: f"{goal.limit:,g}",
    }
    part = "95 % interval of " if goal.is_by_interval else ""
    other = f" or ≤ {goal.or_at_most:g}" if goal.or_at_most is not None else ""
    return f"{part}{name} {sign} {bounds[goal.kind]}{other}"


def values(goal: Goal, rounds: Mapping[str, Sequence[Figures]], side: str) -> list[float] | None:
    """Return the value of a goal in each round, or None if one of its sides was not measured.

    `side` is the side that the goal concerns.
    """
    ours = rounds.get(side)
    theirs = rounds.get(goal.peer) if goal.peer else ours
    if ours is None or theirs is None:
        return None
    found = []
    for mine, other in zip(ours, theirs, strict=True):
        value = mine[goal.figure]
        match goal.kind:
            case Comparison.RATIO:
                value /= other[goal.figure]
            case Comparison.DIFFERENCE:
                value -= other[goal.figure]
            case Comparison.ABSOLUTE:
                pass
        found.append(value)
    return found


def judge(goal: Goal, rounds: Mapping[str, Sequence[Figures]], side: str) -> GoalVerdict | None:
    """Return the verdict on a goal, or None if one of its sides was not measured."""
    found = values(goal, rounds, side)
    if found is None:
        return None
    middle = spread(found)
    interval = median_interval(found)
    value = middle.median
    if goal.is_by_interval:
        value = interval.low if goal.is_minimum else interval.high
    is_met = value >= goal.limit if goal.is_minimum else value <= goal.limit
    if not is_met and goal.or_at_most is not None:
        is_met = spread([each[goal.figure] for each in rounds[side]]).median <= goal.or_at_most
    return GoalVerdict(goal, middle, interval, is_met)
