"""Clients of the queue API: of the shared proxy, and of proxies for a single test."""

from collections.abc import AsyncIterator

import pytest
import pytest_asyncio
from harness.data.clock import FakeClock
from harness.proxy.queue_api import QueueClient
from harness.proxy.server import Proxy, serving
from harness.proxy.shared import Line


@pytest.fixture
def queue(line: Line) -> QueueClient:
    """A client of an endpoint with two workers."""
    return QueueClient(line.proxy)


@pytest.fixture
def alone(proxy: Proxy) -> QueueClient:
    """A client of an endpoint without workers."""
    return QueueClient(proxy)


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest_asyncio.fixture
async def timed(clock: FakeClock) -> AsyncIterator[QueueClient]:
    """A client of an endpoint that uses the fake clock."""
    async with serving(clock) as proxy:
        yield QueueClient(proxy)
