"""A simulated process. A context variable names the node that each handle of the loop belongs to.

Handles without a node belong to the simulated world: the network and the fault plan.
"""

import asyncio
from collections.abc import Callable
from contextvars import Context, ContextVar, copy_context
from typing import Any

NODE: ContextVar["Node | None"] = ContextVar("node", default=None)


class KilledError(BaseException):
    """Unwinds the handle in which a node was killed. No code of the product catches it."""


class Node:
    """A process that can be killed and stopped.

    `on_kill` has functions that release what the operating system releases: locks, files and
    connections. `held`: the handles that wait while the process is stopped. `is_ending`: it has
    received SIGTERM.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self.is_dead = False
        self.is_stopped = False
        self.is_ending = False
        self.held: list[asyncio.Handle] = []
        self.on_kill: list[Callable[[], None]] = []
        context = copy_context()
        context.run(NODE.set, self)
        self.context: Context = context

    def start(self, loop: asyncio.AbstractEventLoop, work: Any) -> "asyncio.Task[Any]":
        """Run a coroutine as a task of this node."""
        return self.context.run(loop.create_task, work)

    def kill(self) -> None:
        """End the process as kill -9 does: none of its code runs any more, not even `finally`."""
        self.is_dead = True
        self.held.clear()
        for release in self.on_kill:
            release()
