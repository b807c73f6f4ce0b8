"""Watch the engine: has it died, or does it stand still while jobs wait for it? Neither mends itself."""

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
    """Returns when the engine is dead, or has done nothing for `patience` seconds although a run waits for it."""
    clock = asyncio.get_running_loop().time
    seen, since = (-1, -1), clock()
    while True:
        await asyncio.sleep(LOOK_SECONDS)
        if engine.dead:
            return EngineGone("engine_dead", "the engine died")
        now, state = clock(), (engine.progress(), work.moves)
        if state != seen or not work.is_waiting_for_engine:
            seen, since = state, now
        elif now - since >= patience:
            return EngineGone("engine_hung", f"the engine made no progress for {patience:.0f} s")
