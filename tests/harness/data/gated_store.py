"""A store of which a test can hold one call, before or after the call has taken effect."""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple, TypeAlias

from proxy.jobs.lifecycle import Event
from proxy.store.memory import MemoryStore


class Call(NamedTuple):
    """A method of the store, and the event for `settle`."""

    name: str
    event: Event | None = None


Position: TypeAlias = bool
"""False: before the call takes effect; True: after that, before it returns. A store returns in the
order of its writes, so later calls then take effect, too, and return after the held one.
"""


@dataclass
class Gate:
    """Holds the first call of a kind."""

    call: Call
    position: Position
    reached: asyncio.Event = field(default_factory=asyncio.Event)
    opened: asyncio.Event = field(default_factory=asyncio.Event)

    async def hold(self) -> None:
        self.reached.set()
        await self.opened.wait()

    def open(self) -> None:
        self.opened.set()


@dataclass
class GatedStore:
    """A memory store with a gate; `done` has the calls that have returned, with their results."""

    store: MemoryStore = field(default_factory=MemoryStore)
    gate: Gate | None = None
    done: list[tuple[Call, Any]] = field(default_factory=list)

    def __getattr__(self, name: str) -> Any:
        found = getattr(self.store, name)
        if not asyncio.iscoroutinefunction(found) or name == "until_gone":
            return found

        async def call(*arguments: Any, **named: Any) -> Any:
            return await self._pass(Call(name, _event(name, arguments)), found, arguments, named)

        return call

    def hold(self, call: Call, position: Position) -> Gate:
        """Hold the next call of this kind until the gate is opened."""
        self.gate = Gate(call, position)
        return self.gate

    def results(self, call: Call) -> list[Any]:
        """Return the results of all calls of a kind that have returned."""
        return [result for done, result in self.done if done == call]

    async def _pass(
        self, call: Call, method: Callable[..., Any], arguments: Any, named: Any
    ) -> Any:
        gate = self.gate
        if gate is not None and gate.call == call and not gate.reached.is_set():
            if not gate.position:
                await gate.hold()
            result = await method(*arguments, **named)
            if gate.position:
                await gate.hold()
        else:
            result = await method(*arguments, **named)
            if gate is not None and gate.position and gate.reached.is_set():
                await gate.opened.wait()
        self.done.append((call, result))
        return result


def _event(name: str, arguments: Any) -> Event | None:
    event: Event | None = arguments[1] if name == "settle" else None
    return event
