"""The table of results, in Markdown."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from .goals import NAMES

# The figures that a table shows, in this order, if a side has them.
COLUMNS = (
    *("requests_per_second", "events_per_second", "tokens_per_second", "cpu_us", "cpu"),
    *("load_core", "worker_cpu_us"),
    *("latency_p50_ms", "latency_p99_ms", "first_p50_ms", "first_p99_ms", "gap_p99_ms", "rss_mb"),
    *("transit_max_ms", "idle_rss_mb", "stream_kb", "probe_p99_ms", "delay_ms", "start_s"),
    *(
        "api_cpu_ms_per_1000_tokens",
        "growth_mb",
        "lag_p999_ms",
        "lag_max_ms",
        "control_lag_max_ms",
        "errors",
    ),
)

HEADER = """\
# Results

Written by `make bench`: do not edit. Cells are medians of the rounds, with minimum and maximum in
parentheses. The server under test is pinned to one core; the load generator, and the upstream or
worker, share the other one.
"""


def number(value: float) -> str:
    """Return a number with three significant digits, or without decimals if it is large."""
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def cell(values: Sequence[float]) -> str:
    """Return median, minimum and maximum, as `median (minimum to maximum)`."""
    middle, low, high = (number(each) for each in values)
    return middle if low == high else f"{middle} ({low} to {high})"


def table(header: Sequence[str], lines: Iterable[Sequence[str]]) -> str:
    """Return a table in Markdown."""
    rows = [header, ["---"] * len(header), *lines]
    return "".join(f"| {' | '.join(row)} |\n" for row in rows)


def section(result: Mapping[str, Any]) -> str:
    """Return the section of one row: where and when, all sides with their figures, and goals."""
    sides = result["sides"]
    columns = [
        name
        for name in COLUMNS
        if any(name in side and any(side[name][:3]) for side in sides.values())
    ]
    lines = [
        [side, *(cell(found[name][:3]) if name in found else "" for name in columns)]
        for side, found in sides.items()
    ]
    header = [f"per {result['unit']}", *(NAMES.get(name, name) for name in columns)]
    goals = [
        [
            goal["goal"],
            f"{goal['stretch']:g}" if goal["stretch"] is not None else "",
            cell(goal["values"]),
            " to ".join(map(number, goal["interval"])),
            "yes" if goal["is_met"] else "no",
        ]
        for goal in result["goals"]
    ]
    place = (
        f"Behind our proxy: {result['worker']}. {result['rounds']} rounds, {result['date']},"
        f" commit {result['commit']}, {result['machine']}. `{result['command']}`\n"
    )
    parts = [f"## {result['name']}: {result['title']}\n", place, table(header, lines)]
    if goals:
        parts.append(table(["goal", "stretch", "measured", "95 % interval", "met"], goals))
    parts += [f"Not run: {side} ({why})\n" for side, why in result["not_run"].items()]
    return "\n".join(parts)


def page(results: Sequence[Mapping[str, Any]], versions: Mapping[str, str]) -> str:
    """Return the page of all rows."""
    packages = ", ".join(f"{name} {version}" for name, version in versions.items())
    return "\n".join([HEADER, f"Versions: {packages}.\n", *map(section, results)])
