"""The files in `benchmarks/results`: JSON for programs, a table and a plot for readers."""

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from .goals import judge, title
from .model import Measured, Row
from .plot import svg
from .report import page, section
from .statistics import spread

FOLDER = Path(__file__).resolve().parents[1] / "results"
QUICK = "quick.json"


def summary(row: Row, found: Measured, place: Mapping[str, str], load: float) -> dict[str, Any]:
    """Return the result of a row, as it is written to a file.

    Each figure is a list: median, minimum, maximum, and the values of all rounds.
    """
    sides = {
        side: {name: _all([one[name] for one in rounds]) for name in rounds[0]}
        for side, rounds in found.rounds.items()
    }
    verdicts = [judge(goal, found.rounds, row.sides[0].name) for goal in row.goals]
    return {
        "name": row.name,
        "title": row.title,
        "worker": row.worker,
        "unit": row.unit.value,
        "rounds": max(map(len, found.rounds.values()), default=0),
        **place,
        "load_before": load,
        "sides": sides,
        "goals": [
            {
                "goal": title(verdict.goal),
                "stretch": verdict.goal.stretch,
                "values": list(verdict.values),
                "interval": list(verdict.interval),
                "is_met": verdict.is_met,
            }
            for verdict in verdicts
            if verdict is not None
        ],
        "not_run": found.not_run,
    }


def _all(values: Sequence[float]) -> list[float]:
    return [float(f"{value:.5g}") for value in (*spread(values), *values)]


def text(result: Mapping[str, Any]) -> str:
    return section(result)


def write(folder: Path, result: Mapping[str, Any], versions: Mapping[str, str]) -> None:
    """Write the result of one row, and then table and plot of all rows that have a file."""
    folder.mkdir(exist_ok=True)
    _dump(folder / f"row-{result['name']}.json", {**result, "versions": versions})
    results = [json.loads(path.read_text()) for path in sorted(folder.glob("row-*.json"))]
    (folder / "table.md").write_text(page(results, versions), encoding="utf-8")
    (folder / "plot.svg").write_text(svg(results), encoding="utf-8")


def committed_ratios(folder: Path) -> dict[str, float] | None:
    """Return the ratios that `bench-quick` compares with; None if there are none yet."""
    path = folder / QUICK
    if not path.exists():
        return None
    ratios: dict[str, float] = json.loads(path.read_text())["ratios"]
    return ratios


def write_quick(
    folder: Path,
    results: Sequence[Mapping[str, Any]],
    ratios: Mapping[str, Sequence[float]],
    versions: Mapping[str, str],
) -> None:
    """Write the results of `bench-quick`, with the median of each checked ratio."""
    folder.mkdir(exist_ok=True)
    medians = {name: float(f"{spread(each).median:.4g}") for name, each in ratios.items()}
    _dump(folder / QUICK, {"ratios": medians, "versions": versions, "rows": results})
    (folder / "quick.md").write_text(page(results, versions), encoding="utf-8")
    (folder / "quick.svg").write_text(svg(results), encoding="utf-8")


def _dump(path: Path, value: Any) -> None:
    """Write a value as JSON, with each list of numbers on one line."""
    text = json.dumps(value, indent=1, ensure_ascii=False)
    text = re.sub(r"\[\s+([-\d.,e\s]+?)\s+\]", lambda found: f"[{_line(found[1])}]", text)
    path.write_text(text + "\n", encoding="utf-8")


def _line(numbers: str) -> str:
    return " ".join(numbers.split())
