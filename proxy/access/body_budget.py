"""The memory budget of request bodies: a limit in bytes for all requests together.

A limit on the number of requests is not enough: 400 concurrent calls of 20 MB each are 8 GB.
Therefore bytes are reserved for a body before it is read, and released when its request is over.
If the budget is exhausted, a client is refused and should retry; a worker waits, because it posts
its result only once.
"""

import asyncio
from collections import defaultdict, deque
from typing import Self


class BudgetError(Exception):
    """The budget has not enough free bytes for a body."""


class Share:
    """The bytes of a budget that one request has reserved, on behalf of a holder."""

    __slots__ = ("_budget", "_holder", "held")

    def __init__(self, budget: "Budget", holder: str) -> None:
        self._budget = budget
        self._holder = holder
        self.held = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.give_back()

    def grow(self, size: int) -> None:
        """Reserve `size` more bytes. Raises BudgetError if they are not free or if others wait."""
        if not self._budget.take(size, self._holder):
            raise BudgetError("The server is out of memory for request bodies. Retry shortly.")
        self.held += size

    async def wait(self, size: int) -> None:
        """Wait until `size` more bytes are free, and reserve them."""
        await self._budget.wait(size, self._holder)
        self.held += size

    def give_back(self) -> None:
        """Release all reserved bytes; a no-op the second time."""
        held = self.held
        self.held = 0
        self._budget.release(held, self._holder)


class Budget:
    """A number of bytes that requests share, with a FIFO queue of waiting requests."""

    def __init__(self, limit: int, each: int | None = None) -> None:
        """Create a budget of `limit` bytes, of which each holder may reserve at most `each`."""
        self.limit = limit
        self.used = 0
        self._each = limit if each is None else each
        self._held: defaultdict[str, int] = defaultdict(int)
        self._waiting: deque[tuple[int, asyncio.Future[None]]] = deque()

    def share(self, holder: str = "") -> Share:
        """Return a share for one request: a context manager that releases it at the end."""
        return Share(self, holder)

    def take(self, size: int, holder: str) -> bool:
        """Reserve `size` bytes; return False if that exceeds a limit or if other requests wait."""
        if self.used + size > self.limit or self._waiting or self._held[holder] + size > self._each:
            return False
        self.used += size
        self._held[holder] += size
        return True

    async def wait(self, size: int, holder: str) -> None:
        """Reserve `size` bytes when all earlier waiters have been served and the bytes are free.

        A size above the limit of the budget is granted when the whole budget is free.
        """
        if self.take(size, holder):
            return
        self._held[holder] += size
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append((size, turn))
        try:
            await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled():
                # The bytes were granted before the cancellation was delivered.
                self.release(size, holder)
            else:
                self._waiting.remove((size, turn))
                self._held[holder] -= size
                self._grant()
            raise

    def release(self, size: int, holder: str) -> None:
        """Release `size` bytes of a holder, and grant them to waiting requests."""
        self.used -= size
        self._held[holder] -= size
        if not self._held[holder]:
            del self._held[holder]
        self._grant()

    def _grant(self) -> None:
        """Serve waiting requests in order, as far as the free bytes allow."""
        while self._waiting:
            size, turn = self._waiting[0]
            if self.used and self.used + size > self.limit:
                return
            self._waiting.popleft()
            self.used += size
            turn.set_result(None)
