"""Detection of growth in a figure: the slope of a regression line, and its confidence interval."""

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

# Standard errors on either side, for a confidence of 95 %.
SURE = 1.96
# Samples that are averaged into one.
BLOCK = 10
# Maximum correlation of neighbours that is assumed; with 1 the margin would be infinite.
MAX_CORRELATION = 0.95


@dataclass(frozen=True)
class Slope:
    """The growth per sample, and its margin of error."""

    each: float
    doubt: float

    @property
    def is_flat(self) -> bool:
        """Return True if the slope is negative or does not differ significantly from zero."""
        return self.each - self.doubt <= 0


def slope(samples: Sequence[float]) -> Slope:
    """Return the slope of samples that were taken at equal intervals.

    A figure that grows in steps, such as RSS, stays on one side of the line for many samples. Its
    neighbours are not independent, so the margin is widened by their correlation (AR(1) noise).
    """
    blocks = [
        statistics.fmean(samples[at : at + BLOCK])
        for at in range(0, len(samples) - BLOCK + 1, BLOCK)
    ]
    assert len(blocks) > 2, "too few samples for a line: give it more MINUTES"
    times = list(range(len(blocks)))
    line = statistics.linear_regression(times, blocks)
    left = [
        value - line.slope * time - line.intercept
        for time, value in zip(times, blocks, strict=True)
    ]
    spread = math.fsum((time - statistics.fmean(times)) ** 2 for time in times)
    squares = math.fsum(one * one for one in left)
    error = math.sqrt(squares / (len(blocks) - 2) / spread)
    neighbours = math.fsum(one * other for one, other in pairwise(left))
    correlation = min(max(neighbours / squares, 0.0), MAX_CORRELATION) if squares else 0.0
    error *= math.sqrt((1 + correlation) / (1 - correlation))
    return Slope(line.slope / BLOCK, SURE * error / BLOCK)
