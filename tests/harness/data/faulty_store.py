"""A store whose calls fail by plan."""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from proxy.store.base import JobStore
from proxy.store.memory import MemoryStore

# Reads for which the proxy asks periodically are not part of a client's story.
PERIODIC = {"due", "forget", "deliveries", "until_gone"}


@dataclass
class Fault:
    """A way to fail: an error, before or after the call has taken effect, and a delay before it."""

    error: Callable[[], Exception] | None
    is_after: bool = False
    times: int = 1
    seconds: float = 0.0


@dataclass
class FaultyStore:
    """A store whose calls from `first` on fail; `calls` has the names of all calls.

    `only`: the names of the calls that count and fail; empty: all.
    """

    store: JobStore = field(default_factory=MemoryStore)
    calls: list[str] = field(default_factory=list)
    only: tuple[str, ...] = ()
    first: int = 0
    fault: Fault | None = None

    def __getattr__(self, name: str) -> Any:
        found = getattr(self.store, name)
        is_periodic = name in PERIODIC or not asyncio.iscoroutinefunction(found)
        if is_periodic or (self.only and name not in self.only):
            return found

        async def call(*arguments: Any, **named: Any) -> Any:
            number = len(self.calls)
            self.calls.append(name)
            fault = self.fault
            if fault is None or not self.first <= number < self.first + fault.times:
                return await found(*arguments, **named)
            await asyncio.sleep(fault.seconds)
            if fault.error is None:
                return await found(*arguments, **named)
            if name == "take":
                return await found(*arguments, **named) if fault.is_after else []
            if fault.is_after:
                await found(*arguments, **named)
            raise fault.error()

        return call

    def arm(self, fault: Fault, number: int, *only: str) -> None:
        """Let the call with this number, counted from now on, fail."""
        self.only = only
        self.first = len(self.calls) + number
        self.fault = fault

    def disarm(self) -> None:
        self.only = ()
        self.fault = None
