"""How many bytes of bodies the proxy holds at once, all requests together.

Counts alone bound nothing: 400 calls at once of 20 MB each are 8 GB. So each body is paid for before it is read, and
given back when its request is over. A client that finds nothing left is told to come back; a worker, whose result is
posted only once, waits.
"""

import asyncio
from collections import defaultdict, deque
from typing import Self


class BudgetError(Exception):
    """There is no room for this body just now."""


class Share:
    """What one request of a holder has of a budget, in bytes."""

    __slots__ = ("_budget", "_holder", "held")

    def __init__(self, budget: "Budget", holder: str) -> None:
        self._budget, self._holder, self.held = budget, holder, 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.give_back()

    def grow(self, size: int) -> None:
        """Hold so much more, or `BudgetError`. Those who wait are not passed."""
        if not self._budget.take(size, self._holder):
            raise BudgetError("This server holds as many bodies as it may. Try again in a moment.")
        self.held += size

    async def wait(self, size: int) -> None:
        """Hold so much more, as soon as it is there."""
        await self._budget.wait(size, self._holder)
        self.held += size

    def give_back(self) -> None:
        """Hold nothing any more."""
        held, self.held = self.held, 0
        self._budget.give(held, self._holder)


class Budget:
    """A number of bytes that requests share; no holder has more than `each` of them, if that is given."""

    def __init__(self, limit: int, each: int | None = None) -> None:
        self.limit = limit
        self.used = 0
        self._each = limit if each is None else each
        self._held: defaultdict[str, int] = defaultdict(int)
        self._waiting: deque[tuple[int, asyncio.Future[None]]] = deque()

    def share(self, holder: str = "") -> Share:
        """A share for one request, as a context manager: it is given back at its end."""
        return Share(self, holder)

    def take(self, size: int, holder: str) -> bool:
        """Take so much, if it is there, nobody waits for it, and the holder may have it."""
        if self.used + size > self.limit or self._waiting or self._held[holder] + size > self._each:
            return False
        self.used += size
        self._held[holder] += size
        return True

    async def wait(self, size: int, holder: str) -> None:
        """Take so much, in turn. What is more than there can ever be waits until everything is free."""
        if self.take(size, holder):
            return
        self._held[holder] += size
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append((size, turn))
        try:
            await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled():
                self.give(size, holder)  # it was this one's turn, and it is not there any more
            else:
                self._waiting.remove((size, turn))
                self._held[holder] -= size
                self._next()
            raise

    def give(self, size: int, holder: str) -> None:
        """Give so much back."""
        self.used -= size
        self._held[holder] -= size
        if not self._held[holder]:
            del self._held[holder]
        self._next()

    def _next(self) -> None:
        while self._waiting:
            size, turn = self._waiting[0]
            if self.used and self.used + size > self.limit:
                return
            self._waiting.popleft()
            self.used += size
            turn.set_result(None)
