"""Whether a figure grows: the slope of a line through it, and how sure that is."""

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

SURE = 1.96  # standard errors on either side: 95 %
BLOCK = 10  # samples that count as one: neighbours are no events


@dataclass(frozen=True)
class Slope:
    """By how much it grows with each sample, and by how much more or less that may be."""

    each: float
    doubt: float

    @property
    def is_flat(self) -> bool:
        """Whether it cannot be told from no growth at all, or is a fall."""
        return self.each - self.doubt <= 0


def slope(samples: Sequence[float]) -> Slope:
    """Of samples that were taken at equal distances."""
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
