"""Fixtures of the unit tests: the parts of a proxy that has not been started."""

from pathlib import Path

import pytest
from harness.data.clock import FakeClock

from proxy.app import Parts, compose
from proxy.settings import MEMORY, Settings
from proxy.system import System


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
def parts(clock: FakeClock, tmp_path: Path) -> Parts:
    """Return the parts of a proxy with a store in memory. None of its loops runs."""
    return compose(Settings(store=MEMORY, data_dir=tmp_path), System(clock=clock))
