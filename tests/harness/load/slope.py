"""Detection of growth in a figure: the median slope between its samples, and its lower bound."""

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations, pairwise

# Standard errors below the median, for a confidence of 95 % on both sides.
SURE = 1.96
# Samples that are averaged into one.
BLOCK = 10
# Maximum correlation of neighbours that is assumed; with 1 the bound would be infinite.
MAX_CORRELATION = 0.95


@dataclass(frozen=True)
class Slope:
    """The growth per sample, and its lower bound."""

    each: float
    least: float

    @property
    def is_flat(self) -> bool:
        """Return True if the growth does not differ significantly from zero, or is negative."""
        return self.least <= 0


def slope(samples: Sequence[float]) -> Slope:
    """Return the slope of samples that were taken at equal intervals.

    It is the median of the slopes between all pairs (Theil and Sen). RSS changes in steps of 256 KB
    or more, and one step moves a regression line, but not this median. The bound is that of
    Kendall's rank correlation. Neighbours are not independent, so it is lowered by their
    correlation (AR(1) noise).
    """
    blocks = [
        statistics.fmean(samples[at : at + BLOCK])
        for at in range(0, len(samples) - BLOCK + 1, BLOCK)
    ]
    number = len(blocks)
    assert number > 2, "too few samples: give it more MINUTES"
    slopes = sorted(
        (later - earlier) / (end - begin)
        for (begin, earlier), (end, later) in combinations(enumerate(blocks), 2)
    )
    each = statistics.median(slopes)
    correlation = _correlation([value - each * time for time, value in enumerate(blocks)])
    error = math.sqrt(number * (number - 1) * (2 * number + 5) / 18)
    error *= math.sqrt((1 + correlation) / (1 - correlation))
    rank = int((len(slopes) - SURE * error) / 2)
    least = slopes[rank] if rank >= 0 else -math.inf
    return Slope(each / BLOCK, least / BLOCK)


def _correlation(values: Sequence[float]) -> float:
    """Return the correlation of neighbours, from 0 to `MAX_CORRELATION`."""
    mean = statistics.fmean(values)
    left = [value - mean for value in values]
    squares = math.fsum(one * one for one in left)
    if not squares:
        return 0.0
    neighbours = math.fsum(one * other for one, other in pairwise(left))
    return min(max(neighbours / squares, 0.0), MAX_CORRELATION)
