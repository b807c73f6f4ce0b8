"""Watch the engine: has it died, or does it stand still while jobs wait for it? Neither mends itself."""

import asyncio
import time
from dataclasses import dataclass

from worker_vllm.engine.base import Engine
from worker_vllm.runtime import Runtime

LOOK_SECONDS = 0.2


@dataclass(frozen=True, slots=True)
class EngineGone:
    """Why the worker must end: a code for programs and a sentence for people."""

    code: str
    message: str


async def watch(engine: Engine, runtime: Runtime, patience: float) -> EngineGone:
    """Returns when the engine is dead, or has done nothing for `patience` seconds although a run waits for it."""
    seen, since = (-1, -1), time.monotonic()
    while True:
        await asyncio.sleep(LOOK_SECONDS)
        if engine.dead:
            return EngineGone("engine_dead", "the engine died")
        now, state = time.monotonic(), (engine.progress(), runtime.moves)
        if state != seen or not runtime.is_waiting_for_engine:
            seen, since = state, now
        elif now - since >= patience:
            return EngineGone("engine_hung", f"the engine made no progress for {patience:.0f} s")
