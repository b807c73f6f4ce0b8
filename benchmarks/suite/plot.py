"""A plot of the results: the CPU time of each side, relative to the first peer, as SVG."""

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple
from xml.sax.saxutils import escape

WIDTH = 760
LABEL_WIDTH = 250
BAR_HEIGHT = 16
GAP = 14
MARGIN = 34
# Width of a bar in pixels for each factor of ten.
DECADE = 100
LEAST = 0.1
COLOURS = ("#1f6feb", "#8b949e", "#d29922", "#cf222e", "#8250df")


class Bar(NamedTuple):
    """A side of a row, and the ratio of its CPU time to that of the reference."""

    label: str
    ratio: float
    text: str


def bars(result: Mapping[str, Any], reference: str = "nginx") -> list[Bar]:
    """Return the bars of a row; none if the reference was not measured."""
    sides = result["sides"]
    if reference not in sides or not sides[reference]["cpu_us"][0]:
        return []
    base = sides[reference]["cpu_us"][0]
    found = []
    for name, figures in sides.items():
        cpu = figures["cpu_us"][0]
        shown = f"{cpu:,.0f}" if cpu >= 100 else f"{cpu:.3g}"
        text = f"{shown} µs per {result['unit']} ({cpu / base:.2f})"
        found.append(Bar(name, cpu / base, text))
    return found


def length(ratio: float) -> float:
    """Return the length of a bar in pixels, on a logarithmic scale that begins at `LEAST`."""
    return max(2.0, math.log10(max(ratio, LEAST) / LEAST) * DECADE)


def svg(results: Sequence[Mapping[str, Any]]) -> str:
    """Return the plot of all rows that have a reference."""
    parts = []
    y = MARGIN
    for result in results:
        found = bars(result)
        if not found:
            continue
        parts.append(_text(8, y + 12, f"{result['name']}: {result['title']}", weight="bold"))
        y += BAR_HEIGHT + 4
        for number, bar in enumerate(found):
            colour = COLOURS[number % len(COLOURS)]
            end = LABEL_WIDTH / 2 + length(bar.ratio)
            parts.append(_text(8, y + 12, bar.label))
            parts.append(
                f'<rect x="{LABEL_WIDTH / 2:g}" y="{y}" width="{length(bar.ratio):.1f}"'
                f' height="{BAR_HEIGHT - 2}" fill="{colour}"/>'
            )
            parts.append(_text(end + 6, y + 12, bar.text))
            y += BAR_HEIGHT
        y += GAP
    title = "CPU time of the proxy on one core, relative to nginx (logarithmic)"
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{y + GAP}"'
        f' font-family="sans-serif" font-size="12">'
        f'<rect width="{WIDTH}" height="{y + GAP}" fill="white"/>'
    )
    return "\n".join([head, _text(8, 20, title, weight="bold"), *parts, "</svg>\n"])


def _text(x: float, y: float, text: str, weight: str = "normal") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" font-weight="{weight}">{escape(text)}</text>'
