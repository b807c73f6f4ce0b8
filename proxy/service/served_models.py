"""The memory of what the endpoints have served: after a restart, models are known before a worker
has connected.
"""

import asyncio
from functools import partial

from proxy.jobs.model import EndpointId
from proxy.service.background import insist
from proxy.service.endpoints import Endpoints
from proxy.store.base import JobStore


class ServedModels:
    """Keeps the models that workers have announced in the store."""

    def __init__(self, endpoints: Endpoints, store: JobStore) -> None:
        self._endpoints = endpoints
        self._store = store
        # The endpoints whose models have changed. A dict, because it keeps their order.
        self._changed: dict[EndpointId, None] = {}
        self._has_changed = asyncio.Event()

    async def restore(self) -> None:
        """Give the endpoints the models of the store, which is open."""
        for endpoint_id, models in (await self._store.served_models()).items():
            endpoint = self._endpoints.get(endpoint_id)
            if endpoint is not None:
                self._endpoints.restore(endpoint, models)

    def note(self, endpoint: EndpointId) -> None:
        """Note that the models of an endpoint have changed."""
        self._changed[endpoint] = None
        self._has_changed.set()

    async def serve(self) -> None:
        """Write the changes to the store until cancelled."""
        while True:
            await self._has_changed.wait()
            self._has_changed.clear()
            while self._changed:
                endpoint = next(iter(self._changed))
                del self._changed[endpoint]
                models = self._endpoints.announced(endpoint)
                await insist(partial(self._store.set_served_models, endpoint, models))
