"""The statistics of a comparison: medians, spreads, and confidence intervals of paired ratios."""

import random
import statistics
from collections.abc import Sequence
from typing import NamedTuple

RESAMPLES = 10_000
CONFIDENCE = 0.95


class Spread(NamedTuple):
    """The median of some values, and the least and the greatest of them."""

    median: float
    low: float
    high: float


class Interval(NamedTuple):
    """A confidence interval."""

    low: float
    high: float


def spread(values: Sequence[float]) -> Spread:
    """Return the median, minimum and maximum of at least one value."""
    return Spread(statistics.median(values), min(values), max(values))


def paired_ratios(ours: Sequence[float], theirs: Sequence[float]) -> list[float]:
    """Return the ratio of each pair of values that were measured in the same round."""
    return [mine / other for mine, other in zip(ours, theirs, strict=True)]


def median_interval(values: Sequence[float], seed: int = 0) -> Interval:
    """Return the 95 % confidence interval of the median of the population, by bootstrap.

    The result depends on the values and on `seed` only.
    """
    chance = random.Random(seed)
    medians = sorted(
        statistics.median(chance.choices(values, k=len(values))) for _ in range(RESAMPLES)
    )
    outside = round(RESAMPLES * (1 - CONFIDENCE) / 2)
    return Interval(medians[outside], medians[RESAMPLES - 1 - outside])
