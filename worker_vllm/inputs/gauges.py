"""The engine's load as the seed's `metrics` object shows it: throughputs over time, cache, running, pending."""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

from worker_vllm.engine.base import Reading

EVERY_SECONDS = 0.5  # one reading serves all streams for this long
STALE_SECONDS = 5.0  # an older reading would average over a time that is past


@dataclass(frozen=True, slots=True)
class Load:
    """A reading, and the tokens a second since the one before it."""

    at: float
    reading: Reading
    prompt_rate: float = 0.0
    generation_rate: float = 0.0


class Gauges:
    """Reads an engine's load, seldom enough to cost nothing."""

    def __init__(
        self, read: Callable[[], Awaitable[Reading | None]], clock: Callable[[], float]
    ) -> None:
        self._read = read
        self._clock = clock
        self._load: Load | None = None
        self._has_rates = False

    async def begin(self) -> None:
        """A stream begins: from here on there is something to measure against."""
        if self._load is None or self._clock() - self._load.at > STALE_SECONDS:
            self._has_rates = False
            await self._look()

    async def load(self) -> Load | None:
        """The load now; None where the engine does not tell."""
        if self._load is not None and (
            not self._has_rates or self._clock() - self._load.at >= EVERY_SECONDS
        ):
            await self._look()
        return self._load

    async def _look(self) -> None:
        before, reading, now = self._load, await self._read(), self._clock()
        if reading is None:
            self._load = None
            return
        is_fresh = before is not None and 0 < now - before.at <= STALE_SECONDS
        if before is None or not is_fresh:
            self._load = Load(now, reading)
            return
        seconds = now - before.at
        prompt = (reading.prompt_tokens - before.reading.prompt_tokens) / seconds
        generation = (reading.generation_tokens - before.reading.generation_tokens) / seconds
        self._load = Load(now, reading, max(0.0, prompt), max(0.0, generation))
        self._has_rates = True


def metrics(load: Load | None, index: int, input_tokens: int, output_tokens: int) -> dict[str, Any]:
    """The seed's `metrics` object of one step. What an engine does not tell is null.

    vLLM keeps its cache in one place and swaps nothing, so `cpu_kv_cache_usage` and `swapped` are always 0 there.
    """
    reading = None if load is None else load.reading
    none = None if reading is None else 0
    return {
        "avg_gen_throughput": None if load is None else round(load.generation_rate, 3),
        "avg_prompt_throughput": None if load is None else round(load.prompt_rate, 3),
        "cpu_kv_cache_usage": none,
        "gpu_kv_cache_usage": None if reading is None else reading.kv_cache,
        "input_tokens": input_tokens,
        "output_tokens": output_tokens,
        "pending": None if reading is None else reading.waiting,
        "running": None if reading is None else reading.running,
        "scenario": "stream",
        "stream_index": index,
        "swapped": none,
    }
