"""Figures that a test measures, as JSON lines."""

import json
import subprocess
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parents[3]


def tell(
    figure: str, value: float, goal: str = "", unit: str = "", seed: int | None = None
) -> None:
    """Print a measured figure with its goal, the commit, and the seed of random choices, if any."""
    line: dict[str, object] = {"figure": figure, "value": value, "goal": goal, "unit": unit}
    if seed is not None:
        line["seed"] = seed
    print(json.dumps(line | {"commit": _commit()}), flush=True)


@cache
def _commit() -> str:
    """Return the short hash of the commit; empty outside of a repository."""
    command = ("git", "rev-parse", "--short", "HEAD")
    try:
        return subprocess.run(
            command, cwd=ROOT, capture_output=True, text=True, check=True
        ).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return ""
