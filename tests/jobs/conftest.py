"""The queue API on the shared line, and on proxies of one's own."""

from collections.abc import AsyncIterator

import pytest
import pytest_asyncio
from harness.data.clock import FakeClock
from harness.proxy.queue_api import QueueClient
from harness.proxy.server import Proxy, serving
from harness.proxy.shared import Line


@pytest.fixture
def queue(line: Line) -> QueueClient:
    """An endpoint with two workers."""
    return QueueClient(line.proxy)


@pytest.fixture
def alone(proxy: Proxy) -> QueueClient:
    """An endpoint without a worker."""
    return QueueClient(proxy)


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest_asyncio.fixture
async def timed(clock: FakeClock) -> AsyncIterator[QueueClient]:
    """An endpoint whose time is the test's."""
    async with serving(clock) as proxy:
        yield QueueClient(proxy)
