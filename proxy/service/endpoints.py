"""The endpoints and the models that they serve."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

from proxy.jobs.model import EndpointId, Millis
from proxy.jobs.served_model import Model

# Models that all workers of one endpoint may announce together. The list of them is one response.
ENDPOINT_MAX_MODELS = 1_000
# A message lists this many names, each cut to this length.
LISTED_NAMES = 10
NAME_SHOWN_CHARACTERS = 100
QUEUE_TIMEOUT = Millis(300_000)
EXECUTION_TIMEOUT = Millis(600_000)


@dataclass(frozen=True, slots=True)
class Endpoint:
    """One queue and the workers that serve it. All workers of an endpoint serve the same base
    models.

    `models`: the configured ones, known before a worker connects. `queue_timeout`: an interactive
    job that no worker has taken by then is answered with 503. `max_queued`: a longer queue is
    refused with 429, since it would only hide that jobs are not served. `max_answer`: the bytes of
    one answer that is not streamed; it is kept until it is complete.
    """

    id: EndpointId
    models: tuple[str, ...] = ()
    queue_timeout: Millis = QUEUE_TIMEOUT
    execution_timeout: Millis = EXECUTION_TIMEOUT
    max_queued: int = 10_000
    max_answer: int = 64 * 1024 * 1024


class OtherModelError(ValueError):
    """A worker serves another base model than its endpoint."""


class Endpoints:
    """The registry. Models are the configured ones and those that workers have announced, connected
    or not.
    """

    def __init__(self, endpoints: Iterable[Endpoint]) -> None:
        self._endpoints = {endpoint.id: endpoint for endpoint in endpoints}
        self._announced: dict[EndpointId, dict[str, Model]] = {}
        # The endpoints whose list comes from the answer of a worker that announces none.
        self._learned: set[str] = set()
        self._models = {endpoint.id: _configured(endpoint) for endpoint in self._endpoints.values()}
        self.on_change: Callable[[EndpointId], None] = _ignore
        """Called when the announced models of an endpoint have changed."""

    def __iter__(self) -> Iterator[Endpoint]:
        return iter(self._endpoints.values())

    def get(self, endpoint_id: str) -> Endpoint | None:
        """Return the endpoint with this id."""
        return self._endpoints.get(EndpointId(endpoint_id))

    def only(self) -> Endpoint | None:
        """Return the endpoint if there is exactly one."""
        return next(iter(self._endpoints.values())) if len(self._endpoints) == 1 else None

    def models(self, endpoint: Endpoint) -> Sequence[Model]:
        """Return the models of an endpoint; empty if none is configured and no worker has announced
        one.
        """
        return list(self._models[endpoint.id].values())

    def serves(self, endpoint: Endpoint, model: str) -> bool:
        """Return True if the endpoint serves this model, or if it knows no models yet: then its
        engine decides.
        """
        known = self._models[endpoint.id]
        return not known or model in known

    def default_model(self, endpoint: Endpoint) -> str:
        """Return the name of the model that answers calls without one, or the id of the endpoint if
        no model is known.
        """
        return next(iter(self._models[endpoint.id]), endpoint.id)

    def routes(self, endpoint: Endpoint, model: str | None) -> frozenset[str]:
        """Return the paths of the engine that serve a model of an endpoint (None: any of them);
        empty if they are unknown.
        """
        known = self._models[endpoint.id]
        if model is not None:
            return known[model].routes if model in known else frozenset()
        found = [one.routes for one in known.values()]
        return frozenset().union(*found) if all(found) else frozenset()

    def having(self, model: str | None) -> Endpoint | None:
        """Return the endpoint for a call whose path names none: the first with this model, or the
        first of all.

        An only endpoint accepts every model until it knows its models, so that calls can wait for
        its first worker.
        """
        for endpoint in self._endpoints.values():
            if model is None or model in self._models[endpoint.id]:
                return endpoint
        only = self.only()
        return only if only is not None and not self._models[only.id] else None

    def announce(self, endpoint: Endpoint, models: Sequence[Model], *, others: bool) -> None:
        """Add the models of a worker. `others`: other workers of the endpoint have announced models
        already.

        Raises `OtherModelError` if its base models differ from the configuration or from those of
        the other workers.
        """
        bases = {model.id for model in models if model.base}
        known = set(endpoint.models)
        if others and not known:
            known = {
                model.id for model in self._announced.get(endpoint.id, {}).values() if model.base
            }
        if known and bases != known:
            message = (
                f"endpoint {endpoint.id} serves {_names(known)}, this worker {_names(bases)}:"
                " use the same model for all workers of an endpoint"
            )
            raise OtherModelError(message)
        kept = self._announced.get(endpoint.id, {}) if others else {}
        announced = kept | {model.id: _joined(model, kept.get(model.id)) for model in models}
        if len(announced) > ENDPOINT_MAX_MODELS:
            raise OtherModelError(
                f"endpoint {endpoint.id} has more than {ENDPOINT_MAX_MODELS} models"
            )
        self._learned.discard(endpoint.id)
        self._change(endpoint, announced)

    def announced(self, endpoint_id: EndpointId) -> Sequence[Model]:
        """Return the models of an endpoint that workers have announced."""
        return list(self._announced.get(endpoint_id, {}).values())

    def restore(self, endpoint: Endpoint, models: Sequence[Model]) -> None:
        """Set the models of an endpoint to those that were announced before the proxy was started,
        unless others are configured. The first worker that announces models replaces them.
        """
        bases = {model.id for model in models if model.base}
        if not endpoint.models or bases == set(endpoint.models):
            self._set(endpoint, {model.id: model for model in models})

    def learn(self, endpoint: Endpoint, models: Sequence[Model]) -> None:
        """Set the models of an endpoint whose workers announce none, as one of them has listed
        them.
        """
        self._learned.add(endpoint.id)
        self._change(endpoint, {model.id: model for model in models})

    def forget_announced(self, endpoint: Endpoint) -> None:
        """Forget the models that workers have announced, or that were restored: the present workers
        announce none.
        """
        if endpoint.id not in self._learned:
            self._change(endpoint, {})

    def forget_learned(self, endpoint: Endpoint) -> None:
        """Forget the models that a worker has listed: none of the present workers lists any."""
        if endpoint.id in self._learned:
            self._learned.discard(endpoint.id)
            self._change(endpoint, {})

    def _change(self, endpoint: Endpoint, models: dict[str, Model]) -> None:
        if models != self._announced.get(endpoint.id, {}):
            self._set(endpoint, models)
            self.on_change(endpoint.id)

    def _set(self, endpoint: Endpoint, models: dict[str, Model]) -> None:
        self._announced[endpoint.id] = models
        self._models[endpoint.id] = _configured(endpoint) | models


def _ignore(_: EndpointId) -> None:
    pass


def _configured(endpoint: Endpoint) -> dict[str, Model]:
    return {name: Model(name) for name in endpoint.models}


def _joined(model: Model, other: Model | None) -> Model:
    """Return a model with the routes of both announcements; unknown if one of them is unknown."""
    if other is None:
        return model
    is_known = model.routes and other.routes
    return replace(model, routes=model.routes | other.routes if is_known else frozenset())


def listed(names: Sequence[str]) -> str:
    """Return names for a message: the first ones, and the number of the others."""
    shown = ", ".join(name[:NAME_SHOWN_CHARACTERS] for name in names[:LISTED_NAMES])
    others = len(names) - LISTED_NAMES
    return f"{shown} and {others} others" if others > 0 else shown


def _names(models: Iterable[str]) -> str:
    return ", ".join(sorted(models)) or "no model"
