"""The interface of all engines, and the queries that are the same for all of them."""

import json
from collections.abc import Iterable
from dataclasses import dataclass
from http import HTTPStatus
from types import TracebackType
from typing import Any, Protocol, Self

from proxy.wire.frames import Model
from worker_vllm.asgi import App, Request, fetch

MODELS_PATH = "/v1/models"
# Longest part of an error response that a message quotes.
ERROR_EXCERPT_BYTES = 200


class EngineError(Exception):
    """The engine cannot be started or queried. The text is the reason and the remedy."""


@dataclass(frozen=True, slots=True)
class Reading:
    """An engine's load at one moment. Token counts are totals since its start."""

    # Number of running requests.
    running: int
    # Number of requests in the engine's own queue.
    waiting: int
    # Usage of the KV cache, from 0 to 1.
    kv_cache: float
    prompt_tokens: int
    generation_tokens: int


READING_METRICS = (
    "vllm:num_requests_running",
    "vllm:num_requests_waiting",
    "vllm:kv_cache_usage_perc",
    "vllm:prompt_tokens_total",
    "vllm:generation_tokens_total",
)
"""vLLM's metrics that make up a `Reading`, in the order of its fields."""


def reading_of(samples: Iterable[tuple[str, float]]) -> Reading | None:
    """Return a reading from metrics by name, summed over engines; None if they are missing.

    The usage of the KV cache is the maximum over engines.
    """
    values: dict[str, list[float]] = {name: [] for name in READING_METRICS}
    for name, value in samples:
        if name in values:
            values[name].append(value)
    running, waiting, cache, prompt, generation = values.values()
    if not running:
        return None
    full = max(cache, default=0.0)
    return Reading(
        int(sum(running)), int(sum(waiting)), full, int(sum(prompt)), int(sum(generation))
    )


class Engine(Protocol):
    """An OpenAI server behind an ASGI app. Entering the context starts it, leaving it stops it."""

    @property
    def name(self) -> str:
        """Name and version, for display."""

    @property
    def app(self) -> App:
        """The ASGI app; available once the engine has started."""

    @property
    def authorization(self) -> str:
        """The Authorization header that the app requires, or an empty string."""

    @property
    def slots(self) -> int:
        """The maximum number of jobs that the engine runs concurrently."""

    @property
    def dead(self) -> bool:
        """True once the engine has died. It does not recover: the worker ends and is restarted."""

    @property
    def failure(self) -> str:
        """The reason why the engine is dead. Clients may read it."""

    def fields(self, path: str) -> frozenset[str]:
        """Return the field names of a route's request body; empty if the engine does not know."""

    def routes(self) -> frozenset[str]:
        """Return the paths to which the app accepts POST; empty if the engine does not know."""

    async def read(self) -> Reading | None:
        """Return the current load; None if the engine does not report it."""

    def progress(self) -> int | None:
        """Return a number that changes whenever the engine makes progress.

        It serves to detect a hang and is not a metric. None: the engine does not know, and detects
        in another way that it is `dead`.
        """

    def kill(self) -> None:
        """Kill the engine's processes, in case it does not stop."""

    async def __aenter__(self) -> Self: ...

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None: ...


async def read_models(engine: Engine) -> list[Model]:
    """Return the models that the engine serves, with its own model cards and its routes.

    A card with a parent is an adapter on a base model. Raises `EngineError` if the engine does not
    return a list of models.
    """
    status, body = await fetch(engine.app, Request("GET", MODELS_PATH), engine.authorization)
    if status != HTTPStatus.OK:
        excerpt = body[:ERROR_EXCERPT_BYTES].decode(errors="replace")
        raise EngineError(f"the engine responded to {MODELS_PATH} with status {status}: {excerpt}")
    try:
        cards: list[dict[str, Any]] = json.loads(body)["data"]
        routes = sorted(engine.routes())
        return [_model(card, routes) for card in cards]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        excerpt = body[:ERROR_EXCERPT_BYTES].decode(errors="replace")
        raise EngineError(
            f"{engine.name} is not an OpenAI-compatible server: its answer to GET {MODELS_PATH} is"
            f" not a list of models: {excerpt}"
        ) from error


def _model(card: dict[str, Any], routes: list[str]) -> Model:
    encoded = json.dumps(card, separators=(",", ":")).encode()
    return Model(card["id"], encoded, not card.get("parent"), routes)
