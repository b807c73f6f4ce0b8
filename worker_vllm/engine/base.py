"""What every engine is, and what all of them are asked in the same way."""

import json
from collections.abc import Iterable
from dataclasses import dataclass
from http import HTTPStatus
from types import TracebackType
from typing import Any, Protocol, Self

from proxy.wire.frames import Model
from worker_vllm.asgi import App, Request, fetch

MODELS_PATH = "/v1/models"


class EngineError(Exception):
    """The engine cannot be started or asked; its sentence says why and what to do."""


@dataclass(frozen=True, slots=True)
class Reading:
    """An engine's load at one moment."""

    running: int  # requests that it works on
    waiting: int  # and that it has queued
    kv_cache: float  # how full its cache is, 0 to 1
    prompt_tokens: int  # since it started
    generation_tokens: int


GAUGES = (
    "vllm:num_requests_running",
    "vllm:num_requests_waiting",
    "vllm:kv_cache_usage_perc",
    "vllm:prompt_tokens_total",
    "vllm:generation_tokens_total",
)
"""vLLM's metrics that make a `Reading`, in its order."""


def reading_of(samples: Iterable[tuple[str, float]]) -> Reading | None:
    """A reading from metrics by name, added up over engines; None if they are not there."""
    sums: dict[str, list[float]] = {name: [] for name in GAUGES}
    for name, value in samples:
        if name in sums:
            sums[name].append(value)
    running, waiting, cache, prompt, generation = sums.values()
    if not running:
        return None
    full = max(cache, default=0.0)
    return Reading(
        int(sum(running)), int(sum(waiting)), full, int(sum(prompt)), int(sum(generation))
    )


class Engine(Protocol):
    """An OpenAI server behind an ASGI callable. Entering it starts it, leaving it stops it."""

    @property
    def name(self) -> str:
        """Name and version, for people."""

    @property
    def app(self) -> App:
        """The app that answers; there once the engine has started."""

    @property
    def authorization(self) -> str:
        """The Authorization header that the app wants, or nothing."""

    @property
    def slots(self) -> int:
        """How many jobs the engine works on at once."""

    @property
    def dead(self) -> bool:
        """True once the engine is gone. It never comes back: the worker ends and is started again."""

    @property
    def failure(self) -> str:
        """Why the engine is dead, in a sentence that clients may read."""

    def fields(self, path: str) -> frozenset[str]:
        """The names that the body of a route may have; none if the engine cannot tell."""

    async def read(self) -> Reading | None:
        """Its load now; None if it does not tell."""

    def progress(self) -> int | None:
        """A number that changes whenever the engine gets anything done. A guard against hanging, not a metric.

        None: the engine cannot say, and finds out in another way that it is `dead`.
        """

    def kill(self) -> None:
        """End the engine's processes at once, for an engine that does not stop."""

    async def __aenter__(self) -> Self: ...

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None: ...


async def read_models(engine: Engine) -> list[Model]:
    """The models that the engine serves, with its own cards. A card with a parent is an adapter on a base model."""
    status, body = await fetch(engine.app, Request("GET", MODELS_PATH), engine.authorization)
    if status != HTTPStatus.OK:
        raise EngineError(
            f"the engine answered {status} to {MODELS_PATH}: {body[:200].decode(errors='replace')}"
        )
    try:
        cards: list[dict[str, Any]] = json.loads(body)["data"]
        return [
            Model(
                card["id"], json.dumps(card, separators=(",", ":")).encode(), not card.get("parent")
            )
            for card in cards
        ]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise EngineError(
            f"the engine's answer to {MODELS_PATH} is no list of models: {error!r}"
        ) from error
