"""Fixtures of the contract tests: a store of each kind, and its jobs."""

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from harness.data.jobs import submission
from harness.data.store_steps import STORES, T0, Submit

from proxy.jobs.model import Job
from proxy.service.events import LocalSignal
from proxy.service.ports import Signal
from proxy.store.base import JobStore


@pytest_asyncio.fixture(params=STORES)
async def store(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[JobStore]:
    """An open and empty store of each kind."""
    made = STORES[request.param](tmp_path)
    async with made.open():
        yield made


@pytest.fixture
def submit(store: JobStore) -> Submit:
    """Submits jobs to the store."""

    async def submit_all(*ids: str, **changed: Any) -> list[Job]:
        return [await store.submit(submission(job_id, **changed), T0) for job_id in ids]

    return submit_all


@pytest.fixture(params=["local"])
def signal(request: pytest.FixtureRequest) -> Signal:
    """A `Signal` of each implementation."""
    assert request.param == "local"
    return LocalSignal()
