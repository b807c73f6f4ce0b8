"""Replay one simulation and print its trace: `python tests/sim/replay.py SEED`, in the set-up's
environment.

`--plan` prints the plan only, `--logs` adds the program's own log, `--without 0,2` leaves faults
out, and `--shrink` leaves out all faults and clients that the first violation does not need.
`--search SECONDS` simulates one seed after another until one has a violation.
"""

import argparse
import os
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from sim.plan import Plan, draw_plan  # noqa: E402 - the checkout's own code
from sim.scenario import simulate  # noqa: E402


def shrunk(plan: Plan) -> Plan:
    """Return the plan without the faults and clients that its violation does not need."""
    kinds = _kinds(plan)
    plan = _without_needless(plan, "faults", kinds)
    return _without_needless(plan, "clients", kinds)


def _without_needless(plan: Plan, field: str, kinds: set[str]) -> Plan:
    size = max(1, len(getattr(plan, field)) // 2)
    while True:
        start = 0
        while start < len(entries := getattr(plan, field)):
            fewer = entries[:start] + entries[start + size :]
            tried = _with(plan, field, fewer)
            if _kinds(tried) & kinds:
                plan = tried
            else:
                start += size
        if size == 1:
            return plan
        size //= 2


def _with(plan: Plan, field: str, entries: Any) -> Plan:
    changes: dict[str, Any] = {field: entries}
    return replace(plan, **changes)


def search(seed: int, seconds: float) -> str | None:
    """Return the first violation of the seeds from `seed` on, or None after `seconds`."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if violations := simulate(draw_plan(seed)).violations:
            return f"seed {seed}: {violations[0]}"
        seed += 1
    return None


def _kinds(plan: Plan) -> set[str]:
    """Return the kinds of the plan's violations: the invariants that they name."""
    return {_kind(text) for text in simulate(plan).violations}


def _kind(violation: str) -> str:
    _, _, text = violation.partition(" ")
    found = [word for word in text.split() if word.endswith(":") and word[:1] in "Ib"]
    return found[0] if found else text


def main() -> None:
    """Print the trace. Exits with 1 if an invariant is violated."""
    if os.environ.get("PYTHONHASHSEED") != "0":
        # Sets of strings would be in another order in each process.
        environment = os.environ | {"PYTHONHASHSEED": "0"}
        os.execve(sys.executable, [sys.executable, *sys.argv], environment)  # noqa: S606 - itself
    parser = argparse.ArgumentParser(prog="replay", description=__doc__)
    parser.add_argument("seed", type=int)
    parser.add_argument("--plan", action="store_true")
    parser.add_argument("--logs", action="store_true")
    parser.add_argument("--shrink", action="store_true")
    parser.add_argument("--search", type=float, default=0.0, metavar="SECONDS")
    parser.add_argument("--without", default="", help="numbers of faults to leave out")
    options = parser.parse_args()
    if options.search:
        sys.exit(search(options.seed, options.search))
    without = {int(number) for number in options.without.split(",") if number}
    plan = draw_plan(options.seed)
    faults = tuple(fault for index, fault in enumerate(plan.faults) if index not in without)
    plan = replace(plan, faults=faults)
    if options.shrink and simulate(plan).violations:
        plan = shrunk(plan)
    write: Callable[[str], Any] = print
    write(plan.to_json())
    if options.plan:
        return
    result = simulate(plan, logs=options.logs)
    for line in (*result.lines, *result.violations):
        write(line)
    sys.exit(bool(result.violations))


if __name__ == "__main__":
    main()
