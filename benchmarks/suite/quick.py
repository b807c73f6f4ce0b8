"""The comparison of `make bench-quick` with the committed ratios."""

from collections.abc import Mapping, Sequence

from .goals import NAMES
from .model import Figures, Row
from .statistics import paired_ratios

# A ratio may be this many times the committed one.
TOLERANCE = 1.5


def ratios(row: Row, rounds: Mapping[str, Sequence[Figures]]) -> dict[str, list[float]]:
    """Return the checked ratios of a row in each round, by title. Smaller ones are better."""
    ours = rounds.get(row.sides[0].name, ())
    found = {}
    for check in row.checks:
        if theirs := rounds.get(check.peer):
            name = f"{row.name}: {NAMES[check.figure]}, ours to {check.peer}"
            found[name] = paired_ratios(
                [one[check.figure] for one in ours], [one[check.figure] for one in theirs]
            )
    return found


def regressions(found: Mapping[str, Sequence[float]], committed: Mapping[str, float]) -> list[str]:
    """Return a line for each ratio whose best try is above the tolerance.

    A ratio that was committed and not measured is one, too. New ratios are not compared.
    """
    lines = []
    for name, before in committed.items():
        tries = found.get(name)
        if not tries:
            lines.append(f"{name}: not measured; the committed ratio is {before:.2f}")
        elif min(tries) > TOLERANCE * before:
            lines.append(
                f"{name}: {min(tries):.2f} in the best of {len(tries)} tries, which is more than"
                f" {TOLERANCE} x the committed ratio of {before:.2f}"
            )
    return lines
