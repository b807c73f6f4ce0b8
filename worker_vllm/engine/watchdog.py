"""Detect an engine that has died, or that makes no progress while jobs wait for it.

An engine does not recover from either.
"""

import asyncio
from dataclasses import dataclass
from typing import Protocol

from worker_vllm.engine.base import Engine

POLL_SECONDS = 0.2


class Work(Protocol):
    """The jobs of the engine, as far as the watchdog needs to know them."""

    @property
    def moves(self) -> int:
        """The number of pieces of output so far."""

    @property
    def is_waiting_for_engine(self) -> bool:
        """True if at least one run waits for the engine only."""


@dataclass(frozen=True, slots=True)
class EngineGone:
    """The reason why the worker must end: an error code and a message."""

    code: str
    message: str


async def watch(engine: Engine, work: Work, timeout_seconds: float) -> EngineGone:
    """Return when the engine is dead or hangs.

    It hangs if it has made no progress for `timeout_seconds` although a run waits for it. An engine
    whose `progress` is None never counts as hanging.
    """
    clock = asyncio.get_running_loop().time
    last_state: tuple[int | None, int] = (-1, -1)
    last_progress_at = clock()
    while True:
        await asyncio.sleep(POLL_SECONDS)
        if engine.dead:
            return EngineGone("engine_dead", engine.failure)
        now = clock()
        progress = engine.progress()
        state = (progress, work.moves)
        if progress is None or state != last_state or not work.is_waiting_for_engine:
            last_state = state
            last_progress_at = now
        elif now - last_progress_at >= timeout_seconds:
            message = f"the engine made no progress for {timeout_seconds:.0f} s"
            return EngineGone("engine_hung", message)
