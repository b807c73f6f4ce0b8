"""Figures that a test measures, as JSON lines."""

import json


def tell(figure: str, value: float, goal: str = "", unit: str = "") -> None:
    """Print a measured figure and its goal."""
    print(json.dumps({"figure": figure, "value": value, "goal": goal, "unit": unit}), flush=True)
