"""Random faults in a simulated cluster: see `loop.py`, `network.py` and `scenario.py`.

A failing seed is replayed by `python tests/sim/replay.py SEED`.
"""

import gc
import os
import time
from dataclasses import replace

import pytest
from harness.load.figures import tell

from sim.plan import Fault, draw_plan
from sim.scenario import Result, simulate

pytestmark = pytest.mark.slow

# Seeds of `make test`, in groups that a parallel run distributes.
GROUPS = 10
SEEDS_PER_GROUP = 10
# A stock worker, some of whose posts are lost.
STOCK_SEED = 46
# The seeds of the torture tests, in parts; with MINUTES, each part has as many as fit.
TORTURE_SEED = 100_000
TORTURE_PARTS = 4
SEEDS_PER_PART = 500
TORTURE_SECONDS = 1_200
MINUTES = float(os.environ.get("MINUTES") or 0)


def outcome(seed: int) -> Result:
    """Simulate one seed, and free its memory."""
    result = simulate(draw_plan(seed))
    gc.collect()
    return result


@pytest.mark.parametrize("group", range(GROUPS))
def test_the_invariants_hold_under_faults(group: int) -> None:
    found = {}
    first = group * SEEDS_PER_GROUP
    for seed in range(first, first + SEEDS_PER_GROUP):
        result = outcome(seed)
        if result.violations:
            found[seed] = result.violations
        elif seed == first and outcome(seed).lines != result.lines:
            found[seed] = ["a second run has another trace"]
    assert not found


@pytest.mark.parametrize("seed", [4, 7, STOCK_SEED])
def test_a_seed_always_gives_the_same_trace(seed: int) -> None:
    assert outcome(seed).lines == outcome(seed).lines


def test_different_seeds_give_different_traces() -> None:
    assert outcome(1).lines != outcome(2).lines


def test_a_stock_worker_takes_part() -> None:
    result = outcome(STOCK_SEED)
    assert not result.violations
    lines = "\n".join(result.lines)
    assert "stock takes" in lines
    assert "broken: ConnectionResetError" in lines
    assert "isStream=true 200" in lines


def test_a_disk_that_forgets_commits_is_found() -> None:
    """The oracle must find something: here the acknowledged jobs that were never written."""
    plan = draw_plan(1)
    lie = Fault(at=5.0, kind="lie", pick=0, seconds=0.0, times=20)
    violations = simulate(replace(plan, store="", faults=(lie,))).violations
    assert any("I1" in violation for violation in violations)


@pytest.mark.torture
@pytest.mark.timeout(max(TORTURE_SECONDS, MINUTES * 60 + 60))
@pytest.mark.parametrize("part", range(TORTURE_PARTS))
def test_the_invariants_hold_under_faults_for_many_seeds(part: int) -> None:
    end = time.monotonic() + 60 * MINUTES
    first = TORTURE_SEED + part * SEEDS_PER_PART
    seed = first
    found = {}
    while time.monotonic() < end if MINUTES else seed < first + SEEDS_PER_PART:
        if violations := outcome(seed).violations:
            found[seed] = violations
        seed += 1
    tell("simulated seeds", seed - first, str(SEEDS_PER_PART), seed=first)
    assert not found
