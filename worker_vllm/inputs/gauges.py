"""The engine's load as the `metrics` object of Runpod's guide: throughput, cache usage, request
counts.
"""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

from worker_vllm.engine.base import Reading

# All streams share one reading for this time.
READING_INTERVAL_SECONDS = 0.5
# Throughput is not computed from an older reading, because it would average over the past.
READING_MAX_AGE_SECONDS = 5.0


@dataclass(frozen=True, slots=True)
class Load:
    """A reading, its time, and the tokens per second since the previous reading."""

    at: float
    reading: Reading
    prompt_rate: float = 0.0
    generation_rate: float = 0.0


class Gauges:
    """Reads an engine's load, at most once per `READING_INTERVAL_SECONDS`."""

    def __init__(
        self, read: Callable[[], Awaitable[Reading | None]], clock: Callable[[], float]
    ) -> None:
        self._read = read
        self._clock = clock
        self._load: Load | None = None
        self._has_rates = False

    async def begin(self) -> None:
        """Take a first reading at the beginning of a stream, to compare later readings with."""
        if self._load is None or self._clock() - self._load.at > READING_MAX_AGE_SECONDS:
            self._has_rates = False
            await self._update()

    async def load(self) -> Load | None:
        """Return the current load; None if the engine does not report it."""
        if self._load is None:
            return None
        age = self._clock() - self._load.at
        if not self._has_rates or age >= READING_INTERVAL_SECONDS:
            await self._update()
        return self._load

    async def _update(self) -> None:
        before = self._load
        reading = await self._read()
        now = self._clock()
        if reading is None:
            self._load = None
            return
        is_fresh = before is not None and 0 < now - before.at <= READING_MAX_AGE_SECONDS
        if before is None or not is_fresh:
            self._load = Load(now, reading)
            return
        seconds = now - before.at
        prompt = (reading.prompt_tokens - before.reading.prompt_tokens) / seconds
        generation = (reading.generation_tokens - before.reading.generation_tokens) / seconds
        self._load = Load(now, reading, max(0.0, prompt), max(0.0, generation))
        self._has_rates = True


def metrics(load: Load | None, index: int, input_tokens: int, output_tokens: int) -> dict[str, Any]:
    """Return the `metrics` object of Runpod's guide for one step, with None for values that are not
    reported.

    vLLM has a single KV cache and does not swap, so `cpu_kv_cache_usage` and `swapped` are always 0
    with it.
    """
    reading = None if load is None else load.reading
    zero = None if reading is None else 0
    return {
        "avg_gen_throughput": None if load is None else round(load.generation_rate, 3),
        "avg_prompt_throughput": None if load is None else round(load.prompt_rate, 3),
        "cpu_kv_cache_usage": zero,
        "gpu_kv_cache_usage": None if reading is None else reading.kv_cache,
        "input_tokens": input_tokens,
        "output_tokens": output_tokens,
        "pending": None if reading is None else reading.waiting,
        "running": None if reading is None else reading.running,
        "scenario": "stream",
        "stream_index": index,
        "swapped": zero,
    }
