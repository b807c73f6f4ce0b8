"""Two operations on one job at the same time, at every step of the proxy: see `race.py`.

One of them wins, both callers receive the actual outcome, and all counters agree with it.
"""

import gc
from collections import Counter
from collections.abc import Iterable
from itertools import product

import pytest
from harness.load.figures import tell

from sim.race import DELAYED, EVEN, OVERTAKING, Pace, explore
from sim.races_of_calls import RACES as RACES_OF_CALLS
from sim.races_of_runs import RACES as RACES_OF_RUNS
from sim.races_of_takes import RACES as RACES_OF_TAKES

pytestmark = pytest.mark.slow

RACES = RACES_OF_RUNS | RACES_OF_TAKES | RACES_OF_CALLS
# Tasks that are ready at the same time run in order, or in the order of a seed.
IN_ORDER, SEED = 0, 3
TORTURE_SEEDS = range(11)


def run(name: str, cases: Iterable[tuple[Pace, int]]) -> None:
    """Explore a race in both orders, with each pace and seed; check that each side wins in some
    interleaving.
    """
    prepare, winners = RACES[name]
    found: Counter[str] = Counter()
    tried = 0
    for pace, seed in cases:
        for is_reversed in (False, True):
            one = explore(prepare, is_reversed=is_reversed, pace=pace, seed=seed)
            assert not one.violations, (pace, seed, is_reversed)
            found += one.winners
            tried += one.tried
        # The simulations run without the collector.
        gc.collect()
    tell(f"interleavings of {name}", tried, str(dict(sorted(found.items()))))
    assert set(found) == winners


@pytest.mark.parametrize("name", RACES)
def test_one_operation_wins_at_every_step(name: str) -> None:
    run(name, ((OVERTAKING, IN_ORDER), (EVEN, SEED)))


@pytest.mark.torture
@pytest.mark.timeout(1_200)
@pytest.mark.parametrize("name", RACES)
def test_one_operation_wins_at_every_step_of_many_orders(name: str) -> None:
    run(name, product((OVERTAKING, EVEN, DELAYED), TORTURE_SEEDS))
