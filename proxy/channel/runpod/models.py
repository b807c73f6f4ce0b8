"""The models of endpoints that only Runpod workers serve.

Such workers announce no models, but worker-vllm answers the route `/v1/models`. A worker is asked
when a client needs to know the models. Other handlers answer with an error.
"""

import asyncio
from collections.abc import Iterable
from typing import NamedTuple

import msgspec
import structlog

from proxy.channel.native.validation import (
    HELLO_MAX_MODELS,
    WorkerRefusedError,
    check_model,
    public_card,
)
from proxy.jobs.model import EndpointId, Owner, Request
from proxy.jobs.served_model import Model
from proxy.service.background import Background
from proxy.service.endpoints import Endpoint, Endpoints
from proxy.service.fleet import Fleet
from proxy.service.interactive import InteractiveJobs
from proxy.wire import frames

log = structlog.get_logger()

MODELS_PATH = "/v1/models"
# No client has this owner, so no client sees these calls.
PROXY = Owner("the proxy itself")
# Clients wait for this time after a worker was asked. Clients give a list of models ten seconds.
WAIT_SECONDS = 3.0
# A worker that takes longer has another kind of handler, or is loading.
QUESTION_SECONDS = 10.0
# After a failure, the same workers are not asked again for this long.
QUESTION_RETRY_SECONDS = 30.0
OK = 200


class _Asked(NamedTuple):
    """The last question: the workers at that time, its time, and True if it was answered."""

    workers: frozenset[str]
    at: float
    is_answered: bool


class _Question(NamedTuple):
    """A question that is not answered yet, and the time until which clients wait for it."""

    task: asyncio.Task[bool]
    wait_until: float


class _List(msgspec.Struct):
    data: list[msgspec.Raw]


class _Card(msgspec.Struct):
    id: str
    parent: str | None = None


class RunpodModels:
    """`ModelSource` that asks Runpod workers, and records the answers."""

    def __init__(
        self,
        endpoints: Endpoints,
        fleet: Fleet,
        interactive: InteractiveJobs,
        background: Background,
    ) -> None:
        self._endpoints = endpoints
        self._fleet = fleet
        self._interactive = interactive
        self._background = background
        self._asked: dict[EndpointId, _Asked] = {}
        # The workers at the time of the last answer.
        self._answered: dict[EndpointId, frozenset[str]] = {}
        self._asking: dict[EndpointId, _Question] = {}

    def forget_stale(self, endpoint: Endpoint) -> None:
        if self._workers(endpoint):
            self._endpoints.forget_announced(endpoint)

    async def learn(self, endpoints: Iterable[Endpoint]) -> None:
        questions = [found for one in endpoints if (found := self._question(one)) is not None]
        if questions:
            now = asyncio.get_running_loop().time()
            seconds = max(0.0, max(one.wait_until for one in questions) - now)
            await asyncio.wait([one.task for one in questions], timeout=seconds)

    def _question(self, endpoint: Endpoint) -> _Question | None:
        """Ask a worker of an endpoint if needed; return the open question."""
        workers = self._workers(endpoint)
        if not workers:
            return None
        self._endpoints.forget_announced(endpoint)
        question = self._asking.get(endpoint.id)
        if question is None and self._may_ask(endpoint, workers):
            work = self._ask(endpoint, workers)
            task = self._background.start(work, f"ask for models of {endpoint.id}")
            question = _Question(task, asyncio.get_running_loop().time() + WAIT_SECONDS)
            self._asking[endpoint.id] = question
        return question

    def _workers(self, endpoint: Endpoint) -> frozenset[str]:
        """Return the workers of an endpoint; none if its models are configured or announced."""
        workers = self._fleet.of(endpoint.id)
        if endpoint.models or any(worker.announces_models for worker in workers):
            return frozenset()
        return frozenset(worker.id for worker in workers)

    def _may_ask(self, endpoint: Endpoint, workers: frozenset[str]) -> bool:
        asked = self._asked.get(endpoint.id)
        if asked is None or workers - asked.workers:
            return True
        now = asyncio.get_running_loop().time()
        return not asked.is_answered and now > asked.at + QUESTION_RETRY_SECONDS

    async def _ask(self, endpoint: Endpoint, workers: frozenset[str]) -> None:
        try:
            models = await self._answer(endpoint)
            if models:
                self._endpoints.learn(endpoint, models)
                self._answered[endpoint.id] = workers
                log.info("models.learned", endpoint=endpoint.id, models=[one.id for one in models])
            elif self._answered.get(endpoint.id, workers).isdisjoint(workers):
                # Those that listed the models have left.
                self._endpoints.forget_learned(endpoint)
            now = asyncio.get_running_loop().time()
            self._asked[endpoint.id] = _Asked(workers, now, bool(models))
        finally:
            del self._asking[endpoint.id]

    async def _answer(self, endpoint: Endpoint) -> list[Model]:
        """Return the models that a worker lists; none if there was no such answer in time."""
        mailbox = self._interactive.call(
            endpoint,
            PROXY,
            Request("GET", MODELS_PATH, "", b""),
            light=True,
            queue_timeout=QUESTION_SECONDS,
        )
        try:
            async with asyncio.timeout(QUESTION_SECONDS):
                while mailbox.outcome is None:
                    await mailbox.wait(None)
        except TimeoutError:
            return []
        finally:
            self._interactive.hang_up(mailbox)
        head = mailbox.response_head
        if head is None or head.status != OK or not mailbox.outcome.answered:
            return []
        return read_models(mailbox.consume(float("inf")))


def read_models(body: bytes) -> list[Model]:
    """Return the models of an OpenAI list; none if it is not a valid list."""
    try:
        cards = msgspec.json.decode(body, type=_List).data[:HELLO_MAX_MODELS]
        return [_model(bytes(card)) for card in cards]
    except (msgspec.MsgspecError, RecursionError, WorkerRefusedError):
        return []


def _model(encoded: bytes) -> Model:
    card = msgspec.json.decode(encoded, type=_Card)
    model = frames.Model(card.id, encoded, base=not card.parent)
    check_model(model)
    return Model(card.id, public_card(model), model.base)
