"""Interleaved rounds: all sides of a row are measured in turns, in alternating order.

Other load of the machine then affects all sides, and none of them always follows the same one.
"""

from collections.abc import Callable, Sequence
from contextlib import AsyncExitStack
from typing import TypeVar

from .model import Figures, Measured, NotInstalledError, Rig, Row, RunningSide, Side

T = TypeVar("T")


def order(sides: Sequence[T], number: int) -> list[T]:
    """Return the sides in the order of a round: in every second one, it is reversed."""
    return list(reversed(sides)) if number % 2 else list(sides)


async def measure(rig: Rig, row: Row, rounds: int, report: Callable[[str], None]) -> Measured:
    """Measure all sides of a row. `report` receives a line for each measurement."""
    found = Measured()
    targets: dict[str, RunningSide] = {}
    async with AsyncExitStack() as stack:
        if not row.is_fresh:
            for side in row.sides:
                try:
                    targets[side.name] = await stack.enter_async_context(side.open(rig))
                except NotInstalledError as error:
                    found.not_run[side.name] = f"not installed: {error}"
        for number in range(-row.warm_up_rounds, rounds):
            for side in order(row.sides, number):
                if side.name in found.not_run:
                    continue
                try:
                    figures = await _once(rig, row, side, targets.get(side.name))
                except NotInstalledError as error:
                    found.not_run[side.name] = f"not installed: {error}"
                    continue
                if number >= 0:
                    found.rounds.setdefault(side.name, []).append(figures)
                report(f"{row.name} round {number + 1}/{rounds} {side.name}: {_short(figures)}")
    return found


async def _once(rig: Rig, row: Row, side: Side, target: RunningSide | None) -> Figures:
    if target is not None:
        return await row.measure(rig, target, row)
    async with side.open(rig) as fresh:
        return await row.measure(rig, fresh, row)


def _short(figures: Figures) -> str:
    return ", ".join(f"{name} {value:,.4g}" for name, value in figures.items() if value)
