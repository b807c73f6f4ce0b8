"""Watch the engine: whether it has died, or makes no progress while jobs wait for it. It recovers from neither."""

import asyncio
from dataclasses import dataclass
from typing import Protocol

from worker_vllm.engine.base import Engine

LOOK_SECONDS = 0.2


class Work(Protocol):
    """What the engine is asked to do."""

    @property
    def moves(self) -> int:
        """Grows with every piece of output."""

    @property
    def is_waiting_for_engine(self) -> bool:
        """Is there a run that the engine, and nobody else, holds up?"""


@dataclass(frozen=True, slots=True)
class EngineGone:
    """Why the worker must end: a code for programs and a sentence for people."""

    code: str
    message: str


async def watch(engine: Engine, work: Work, patience: float) -> EngineGone:
    """Return when the engine is dead, or has made no progress for `patience` seconds although a run waits for it.

    An engine whose `progress` is None never hangs.
    """
    clock = asyncio.get_running_loop().time
    seen: tuple[int | None, int] = (-1, -1)
    since = clock()
    while True:
        await asyncio.sleep(LOOK_SECONDS)
        if engine.dead:
            return EngineGone("engine_dead", engine.failure)
        now, progress = clock(), engine.progress()
        state = (progress, work.moves)
        if progress is None or state != seen or not work.is_waiting_for_engine:
            seen, since = state, now
        elif now - since >= patience:
            return EngineGone("engine_hung", f"the engine made no progress for {patience:.0f} s")
