"""The checks of an OpenAI call before it becomes a job: endpoint, model, limits and admission.

Both ways through the API use them: the application of `api.openai.app`, and the fast lane. No
method waits, except for workers that do not announce their models.
"""

from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import TypeAlias

from proxy.access.keys import Principal
from proxy.access.limits import ClientLimits, limit_headers
from proxy.api.http import read_seconds
from proxy.api.openai.relay import HeartbeatIntervals
from proxy.api.openai.routes import OpenAiRoute
from proxy.api.openai.stream_events import HeartbeatForm
from proxy.api.openai.unserved import not_served
from proxy.api.unknown import unknown_endpoint, unknown_model
from proxy.service.admission import Admission
from proxy.service.endpoints import Endpoint, Endpoints
from proxy.service.ports import ModelSource
from proxy.wire.fields import TO_ENGINE, Fields

# The headers in which OpenAI's SDKs for Python and Node send their own timeout, in seconds.
READ_TIMEOUT_HEADERS = (b"x-stainless-read-timeout", b"x-stainless-timeout")
# The response must arrive this long before the client's timeout.
READ_TIMEOUT_MARGIN_SECONDS = 5.0
# One year: no job waits longer.
READ_TIMEOUT_MAX_SECONDS = 31_536_000.0

Headers: TypeAlias = list[tuple[bytes, bytes]]
"""Header fields of a response."""


class CallChecks:
    """The checks. `model_source`: for endpoints whose workers do not announce their models."""

    def __init__(
        self,
        endpoints: Endpoints,
        admission: Admission,
        limits: ClientLimits,
        intervals: HeartbeatIntervals,
        model_source: ModelSource,
    ) -> None:
        self.limits = limits
        self._endpoints = endpoints
        self._admission = admission
        self._intervals = intervals
        self._model_source = model_source

    def named_endpoint(self, name: str | None) -> Endpoint | None:
        """Return the endpoint that a path names; None if it names none. Raises `ApiError`."""
        if name is None:
            return None
        endpoint = self._endpoints.get(name)
        if endpoint is None:
            raise unknown_endpoint(name, self._endpoints)
        return endpoint

    def count(
        self, principal: Principal, endpoint: Endpoint, now: float | None = None
    ) -> tuple[Callable[[], None], Headers]:
        """Count a call against the caller's limits; `now`: the event loop's time, if it is known.

        Returns the function that ends the call, and the headers about the limits. Raises
        `LimitedError`.
        """
        leave, left = self.limits.requests.enter(principal.key_id, endpoint.id, "openai", now)
        return leave, limit_headers(left)

    def admit(self, endpoint: Endpoint) -> None:
        """Raise `DrainingError` or `QueueFullError` if the endpoint accepts no new job."""
        self._admission.check(endpoint)

    async def learn(self, endpoints: Iterable[Endpoint]) -> None:
        """Update the models of workers that do not announce them."""
        await self._model_source.learn(endpoints)

    async def serving(self, chosen: Endpoint | None, model: str | None) -> Endpoint:
        """Return the endpoint for a call with this model. Raises `ApiError` if none serves it."""
        found = self.find(chosen, model) or await self._find_unannounced(chosen, model)
        if found is None:
            raise unknown_model(model or "", chosen, self._endpoints)
        return found

    def find(self, chosen: Endpoint | None, model: str | None) -> Endpoint | None:
        """Return the endpoint for a call with this model, or None if it is not served.

        `chosen`: the endpoint, if it is known without the model.
        """
        if chosen is None:
            return self._endpoints.having(model)
        return chosen if model is None or self._endpoints.serves(chosen, model) else None

    def only_endpoint(self) -> Endpoint | None:
        """Return the endpoint if there is exactly one."""
        return self._endpoints.only()

    def model_of(self, endpoint: Endpoint, model: str | None) -> str:
        """Return the model of a call for messages: the default one if the call names none."""
        return model or self._endpoints.default_model(endpoint)

    def check_route(self, chosen: Endpoint, model: str | None, route: OpenAiRoute) -> None:
        """Raise `ApiError` if the engines of an endpoint certainly do not serve a route."""
        served = self._endpoints.routes(chosen, model)
        if served and route.path not in served:
            self._model_source.forget_stale(chosen)
            served = self._endpoints.routes(chosen, model)
        if served and route.path not in served:
            raise not_served(self.model_of(chosen, model), route.path, served)

    def heartbeats(
        self,
        form: HeartbeatForm | None,
        timeout: float | None,
        *,
        is_streaming: bool,
        can_be_padded: bool,
    ) -> HeartbeatIntervals | None:
        """Return the heartbeats of a call, or None if it has none.

        Whitespace is for calls that are not streamed, every other form for streams.
        """
        intervals = self._intervals
        is_padding = form is HeartbeatForm.WHITESPACE
        if form is not None and not (is_padding and is_streaming):
            intervals = replace(intervals, form=form)
        if intervals.form is HeartbeatForm.OFF or not (
            is_streaming or (is_padding and can_be_padded)
        ):
            return None
        return intervals if timeout is None else intervals.within(timeout)

    async def _find_unannounced(
        self, chosen: Endpoint | None, model: str | None
    ) -> Endpoint | None:
        """Return as `find`, after the models of workers that do not announce them are updated."""
        if chosen is not None:
            self._model_source.forget_stale(chosen)
            if self._endpoints.serves(chosen, model or ""):
                return chosen
        await self._model_source.learn(self._endpoints if chosen is None else [chosen])
        return self.find(chosen, model)


def engine_fields(headers: dict[bytes, bytes]) -> Fields:
    """Return the header fields of a request that its engine receives."""
    return tuple(
        [
            (name, headers[name])
            for name, pattern in TO_ENGINE.items()
            if name in headers and pattern.fullmatch(headers[name])
        ]
    )


def client_timeout(headers: dict[bytes, bytes]) -> float | None:
    """Return the seconds without a byte that the client accepts, from the SDK's own headers.

    The result is None if no header has a number in range.
    """
    given = [
        seconds
        for name in READ_TIMEOUT_HEADERS
        if (seconds := read_seconds(headers.get(name, b""), READ_TIMEOUT_MAX_SECONDS)) is not None
    ]
    return min(given, default=None)


def queue_timeout_of(timeout: float | None) -> float | None:
    """Return the seconds after which a call without heartbeats must have been answered.

    They are shorter than the client's timeout by a margin.
    """
    return timeout and max(timeout - READ_TIMEOUT_MARGIN_SECONDS, timeout / 2)
