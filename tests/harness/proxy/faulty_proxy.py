"""A proxy whose store fails by plan."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, cast

from harness.data.faulty_store import FaultyStore
from harness.proxy.queue_api import QueueClient
from harness.proxy.server import Proxy, serving
from proxy.store.base import JobStore


@dataclass
class FaultyProxy:
    """The proxy and its store; `queue`: a client of its queue API."""

    proxy: Proxy
    store: FaultyStore

    @property
    def queue(self) -> QueueClient:
        return QueueClient(self.proxy)


@asynccontextmanager
async def faulty(store: FaultyStore, **settings: Any) -> AsyncIterator[FaultyProxy]:
    """Run a proxy with this store. `settings`: those of `serving`."""
    async with serving(job_store=cast("JobStore", store), **settings) as proxy:
        yield FaultyProxy(proxy, store)
