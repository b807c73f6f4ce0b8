"""The line that most stories use: one proxy and two scripted workers, started once."""

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import dataclass

import pytest_asyncio
from harness.proxy import Proxy, serving
from harness.worker import WorkerProcess, worker


@dataclass(frozen=True)
class Line:
    """A proxy with its workers."""

    proxy: Proxy
    workers: list[WorkerProcess]


@pytest_asyncio.fixture(scope="session")
async def line() -> AsyncIterator[Line]:
    """A proxy and two scripted workers, shared by all stories that do them no harm."""
    async with AsyncExitStack() as stack:
        proxy = await stack.enter_async_context(serving())
        workers = [await stack.enter_async_context(worker(proxy)) for _ in range(2)]
        yield Line(proxy, workers)


@pytest_asyncio.fixture
async def proxy() -> AsyncIterator[Proxy]:
    """A proxy of one's own: no workers, short patience, so that a loss is known soon."""
    async with serving(lease=1.0, queue_timeout=30.0) as running:
        yield running
