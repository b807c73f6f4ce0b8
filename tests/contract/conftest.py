"""The stores that the contract is held to: a new one adds a line here, and no test."""

import pytest

from proxy.store.base import JobStore, Signal
from proxy.store.memory import MemoryStore
from proxy.store.signal import LocalSignal


@pytest.fixture(params=["memory"])
def store(request: pytest.FixtureRequest) -> JobStore:
    """An empty store of each kind."""
    assert request.param == "memory"
    return MemoryStore()


@pytest.fixture(params=["local"])
def signal(request: pytest.FixtureRequest) -> Signal:
    """A signal of each kind."""
    assert request.param == "local"
    return LocalSignal()
