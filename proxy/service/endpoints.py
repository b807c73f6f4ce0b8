"""Which endpoints there are, and which models they serve."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from proxy.jobs.model import EndpointId, Millis


@dataclass(frozen=True, slots=True)
class Model:
    """A model by its public name, with the engine's own model card (a JSON object) where a worker has sent one."""

    id: str
    card: bytes | None = None
    base: bool = True  # False for an adapter on a base model


MOST_MODELS = 1_000  # that the workers of one endpoint may announce, all together: a list of them is one answer
QUEUE_TIMEOUT = Millis(300_000)
EXECUTION_TIMEOUT = Millis(600_000)


@dataclass(frozen=True, slots=True)
class Endpoint:
    """One queue and the workers that serve it. Workers of one endpoint are alike: another model is another endpoint."""

    id: EndpointId
    models: tuple[str, ...] = ()  # known before any worker has called
    queue_timeout: Millis = QUEUE_TIMEOUT  # an interactive job that nobody took by then gets 503
    execution_timeout: Millis = EXECUTION_TIMEOUT
    max_queued: int = (
        10_000  # beyond it the answer is 429: a longer queue only hides that nobody is served
    )
    max_answer: int = (
        64 * 1024 * 1024
    )  # bytes of one answer that is not streamed; it is held until it is whole


class OtherModelError(ValueError):
    """A worker serves another base model than its endpoint does."""


class Endpoints:
    """The registry. Models are the configured ones and those that workers have announced, also when they have gone."""

    def __init__(self, endpoints: Iterable[Endpoint]) -> None:
        self._endpoints = {endpoint.id: endpoint for endpoint in endpoints}
        self._announced: dict[EndpointId, dict[str, Model]] = {}
        self._models = {endpoint.id: _configured(endpoint) for endpoint in self._endpoints.values()}

    def __iter__(self) -> Iterator[Endpoint]:
        return iter(self._endpoints.values())

    def get(self, endpoint_id: str) -> Endpoint | None:
        """The endpoint by this id."""
        return self._endpoints.get(EndpointId(endpoint_id))

    def only(self) -> Endpoint | None:
        """The endpoint, where there is just one."""
        return next(iter(self._endpoints.values())) if len(self._endpoints) == 1 else None

    def models(self, endpoint: Endpoint) -> Sequence[Model]:
        """What this endpoint serves; empty when nothing was configured and no worker has ever called."""
        return list(self._models[endpoint.id].values())

    def serves(self, endpoint: Endpoint, model: str) -> bool:
        """Whether the endpoint has this model. One that knows no model yet may have any; its engine will judge."""
        known = self._models[endpoint.id]
        return not known or model in known

    def having(self, model: str | None) -> Endpoint | None:
        """The endpoint for a call on a flat path: the first one with the model; without a model, the first of all.

        The only endpoint takes any model as long as it knows none: whoever calls while its first worker loads waits.
        """
        for endpoint in self._endpoints.values():
            if model is None or model in self._models[endpoint.id]:
                return endpoint
        only = self.only()
        return only if only is not None and not self._models[only.id] else None

    def announce(self, endpoint: Endpoint, models: Sequence[Model], *, others: bool) -> None:
        """Note what a worker serves. `others`: there are other workers here that serve something already.

        Raises `OtherModelError` when its base models are not those of the configuration or of the other workers.
        """
        bases = {model.id for model in models if model.base}
        known = set(endpoint.models)
        if others and not known:
            known = {
                model.id for model in self._announced.get(endpoint.id, {}).values() if model.base
            }
        if known and bases != known:
            message = f"endpoint {endpoint.id} serves {_names(known)}, this worker {_names(bases)}"
            raise OtherModelError(message)
        kept = self._announced.get(endpoint.id, {}) if others else {}
        announced = kept | {model.id: model for model in models}
        if len(announced) > MOST_MODELS:
            raise OtherModelError(
                f"endpoint {endpoint.id} has as many models as are kept ({MOST_MODELS})"
            )
        self._announced[endpoint.id] = announced
        self._models[endpoint.id] = _configured(endpoint) | self._announced[endpoint.id]


def _configured(endpoint: Endpoint) -> dict[str, Model]:
    return {name: Model(name) for name in endpoint.models}


def _names(models: Iterable[str]) -> str:
    return ", ".join(sorted(models)) or "no model"
