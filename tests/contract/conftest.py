"""The stores that the contract is held to: a new one adds a line here, and no test."""

from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest
import pytest_asyncio

from proxy.store.base import JobStore, Signal
from proxy.store.memory import MemoryStore
from proxy.store.signal import LocalSignal
from proxy.store.sqlite.store import SqliteStore

STORES: dict[str, Callable[[Path], JobStore]] = {
    "memory": lambda _: MemoryStore(),
    "sqlite": lambda folder: SqliteStore(folder / "jobs.db"),
}


@pytest_asyncio.fixture(params=STORES)
async def store(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[JobStore]:
    """An empty store of each kind, open."""
    made = STORES[request.param](tmp_path)
    async with made.open():
        yield made


@pytest.fixture(params=["local"])
def signal(request: pytest.FixtureRequest) -> Signal:
    """A signal of each kind."""
    assert request.param == "local"
    return LocalSignal()
