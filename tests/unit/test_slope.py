import random

import pytest
from harness.load.slope import slope

NOISE = random.Random(1)


def noisy(each: float, number: int = 400) -> list[float]:
    """Return a figure that grows by `each` with each sample, with noise."""
    return [100 + each * index + NOISE.gauss(0, 1) for index in range(number)]


def test_a_figure_with_noise_only_is_flat() -> None:
    assert sum(slope(noisy(0.0)).is_flat for _ in range(40)) > 30


def test_a_figure_that_grows_is_not_flat() -> None:
    found = slope(noisy(0.02))
    assert not found.is_flat
    assert abs(found.each - 0.02) < 0.01
    assert 0 < found.least < found.each


def test_a_figure_that_falls_or_is_constant_is_flat() -> None:
    assert slope(noisy(-0.02)).is_flat
    assert slope([5.0] * 100).is_flat


def test_a_figure_that_wanders_is_flat() -> None:
    # With a margin for independent noise, only three of four are flat.
    flat = 0
    for _ in range(100):
        figures = [0.0]
        while len(figures) < 400:
            figures.append(figures[-1] * 0.98 + NOISE.gauss(0, 1))
        flat += slope(figures).is_flat
    assert flat > 80


def test_growth_in_steps_is_found() -> None:
    assert not slope([100 + sample // 20 for sample in range(400)]).is_flat


@pytest.mark.parametrize("at", [50, 150, 250, 350])
def test_one_step_is_not_growth(at: int) -> None:
    found = slope([100.0 if sample < at else 100.3 for sample in range(400)])
    assert (found.each, found.is_flat) == (0.0, True)
