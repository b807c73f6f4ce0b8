"""Detection of growth in a figure: the slope of a regression line, and its confidence interval."""

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

# Standard errors on either side, for a confidence of 95 %.
SURE = 1.96
# Samples that are averaged into one, because neighbouring samples are not independent.
BLOCK = 10


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
    """Return the slope of samples that were taken at equal intervals."""
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
    error = math.sqrt(math.fsum(one * one for one in left) / (len(blocks) - 2) / spread)
    return Slope(line.slope / BLOCK, SURE * error / BLOCK)
