"""The limit for the bodies of all active deliveries."""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

from proxy.jobs.model import Owner, Receiver

# The bodies of one owner leave at least a quarter of the space to the other owners.
MAX_OWNER_BYTES_PER_FREE_BYTE = 3


class BodyBudget:
    """Space for bodies. The bodies for a slow receiver leave space for those of the others.

    A body gets space if the bodies for its receiver are smaller than the free space, and those of
    its owner smaller than three times the free space. The last one may exceed the limit.
    """

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._freed = asyncio.Condition()
        self._per_receiver: Counter[Receiver] = Counter()
        self._per_owner: Counter[Owner] = Counter()

    @asynccontextmanager
    async def reserved(
        self, receiver: Receiver, read: Callable[[], Awaitable[bytes]]
    ) -> AsyncIterator[bytes]:
        """Wait for space, then read a body; its space is reserved until the context is left."""
        async with self._freed:
            await self._freed.wait_for(lambda: self._has_space(receiver))
            body = await read()
            self._per_receiver[receiver] += len(body)
            self._per_owner[receiver.owner] += len(body)
        try:
            yield body
        finally:
            async with self._freed:
                self._free(receiver, len(body))
                self._freed.notify_all()

    def _has_space(self, receiver: Receiver) -> bool:
        free = self._max_bytes - self._per_owner.total()
        return (
            self._per_receiver[receiver] < free
            and self._per_owner[receiver.owner] < free * MAX_OWNER_BYTES_PER_FREE_BYTE
        )

    def _free(self, receiver: Receiver, number: int) -> None:
        self._per_receiver[receiver] -= number
        self._per_owner[receiver.owner] -= number
        if not self._per_receiver[receiver]:
            del self._per_receiver[receiver]
        if not self._per_owner[receiver.owner]:
            del self._per_owner[receiver.owner]
