"""The signal of a store within one process."""

import asyncio
from collections import defaultdict


class LocalSignal:
    """`Signal` between the tasks of one event loop."""

    def __init__(self) -> None:
        self._woken: set[str] = set()
        # A dict instead of a set: a set of objects iterates in the order of memory addresses.
        self._waiting: defaultdict[str, dict[asyncio.Future[None], None]] = defaultdict(dict)

    def wake(self, key: str) -> None:
        waiting = self._waiting.pop(key, None)
        if not waiting:
            self._woken.add(key)
            return
        for future in waiting:
            if not future.done():
                future.set_result(None)

    async def wait(self, key: str, seconds: float | None) -> bool:
        if key in self._woken:
            self._woken.discard(key)
            return True
        future = asyncio.get_running_loop().create_future()
        self._waiting[key][future] = None
        try:
            async with asyncio.timeout(seconds):
                await future
        except TimeoutError:
            return False
        finally:
            if (waiting := self._waiting.get(key)) is not None:
                waiting.pop(future, None)
                if not waiting:
                    del self._waiting[key]
        return True
