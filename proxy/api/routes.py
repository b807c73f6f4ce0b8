"""The one table of what clients may ask for on the OpenAI paths. What is not in it does not exist.

The same routes stand at three places: `/v2/{endpoint}/openai/v1/…`, `/openai/v1/…` and `/v1/…`. The flat two find the
endpoint by the request's `model`.
"""

import re
from enum import Enum, auto
from typing import NamedTuple

from proxy.api.errors import ApiError

BODY_BYTES = 20 * 1024 * 1024


class Serves(Enum):
    """Who answers a route."""

    WORKER = auto()  # a job: the body goes to the engine, its answer comes back
    MODELS = auto()  # the registry, without a worker


class Route(NamedTuple):
    """What a path takes."""

    methods: tuple[str, ...]
    serves: Serves
    body_bytes: int = 0
    light: bool = False  # takes no slot


ROUTES: dict[str, Route] = {
    "/v1/chat/completions": Route(("POST",), Serves.WORKER, BODY_BYTES),
    "/v1/completions": Route(("POST",), Serves.WORKER, BODY_BYTES),
    "/v1/models": Route(("GET", "HEAD"), Serves.MODELS),
}
MODEL_ROUTE = Route(("GET", "HEAD"), Serves.MODELS)  # /v1/models/{id}, where an id may contain slashes

_ENDPOINT = re.compile(r"/v2/([A-Za-z0-9_-]{1,80})/openai(/.*)")
_MODELS = "/v1/models/"


class Match(NamedTuple):
    """What a path means."""

    route: Route
    path: str  # the engine's own path
    endpoint: str | None  # None: found by the model
    model: str | None = None  # named in the path


def match(path: str, method: str) -> Match | None:
    """The route at a path; None when the path is none of the OpenAI API's.

    Raises `ApiError` for a path that is, but is not in the table, or not with this method.
    """
    if found := _ENDPOINT.fullmatch(path):
        endpoint, rest = found.group(1), found.group(2)
    elif path.startswith("/openai/"):
        endpoint, rest = None, path.removeprefix("/openai")
    elif path.startswith("/v1/"):
        endpoint, rest = None, path
    else:
        return None
    rest = rest.rstrip("/")
    route, model = ROUTES.get(rest), None
    if route is None and rest.startswith(_MODELS):
        route, model = MODEL_ROUTE, rest.removeprefix(_MODELS)
    if route is None:
        raise ApiError("not_found", f"There is no {rest or '/'} here. Known: {', '.join(sorted(ROUTES))}.")
    if method not in route.methods:
        allowed = ", ".join(route.methods)
        raise ApiError("method_not_allowed", f"{rest} takes {allowed}, not {method}.", allow=allowed)
    return Match(route, rest, endpoint, model)
