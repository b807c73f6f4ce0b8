"""The one table of what clients may ask of an engine. What is not in it does not exist.

The same routes stand at three places: `/v2/{endpoint}/openai/…`, `/openai/…` and `/v1/…`. The flat two find the
endpoint by the request's `model`. `edge.routes` lets in what is here and nothing else. Responses are not kept, so there
is none to get or to cancel by its id.
"""

import re
from enum import Enum, auto
from typing import NamedTuple

from proxy.api.errors import ApiError
from proxy.api.openai.dialects import ANTHROPIC, OPENAI, RESPONSES, Dialect

BODY_BYTES = 20 * 1024 * 1024


class AnsweredBy(Enum):
    """Who answers a route."""

    WORKER = auto()  # a job: the body goes to the engine, its answer comes back
    MODELS = auto()  # the registry, without a worker


class Route(NamedTuple):
    """What a path takes."""

    methods: tuple[str, ...] = ("POST",)
    answered_by: AnsweredBy = AnsweredBy.WORKER
    dialect: Dialect = OPENAI
    is_light: bool = False  # takes no slot
    is_form: bool = False  # the body is multipart/form-data
    path: str = ""  # the engine's own path, where it is another one


LIGHT = Route(is_light=True)

ROUTES: dict[str, Route] = {
    "/v1/chat/completions": Route(),
    "/v1/completions": Route(),
    "/v1/responses": Route(dialect=RESPONSES),
    "/v1/messages": Route(dialect=ANTHROPIC),
    "/v1/messages/count_tokens": LIGHT._replace(dialect=ANTHROPIC),
    "/v1/embeddings": Route(),
    "/v1/audio/transcriptions": Route(is_form=True),
    "/v1/audio/translations": Route(is_form=True),
    "/v1/models": Route(("GET", "HEAD"), AnsweredBy.MODELS),
    **{f"{version}/rerank": Route() for version in ("", "/v1", "/v2")},
    **{f"{version}/score": Route() for version in ("", "/v1")},
    **{f"{version}/pooling": Route(path="/pooling") for version in ("", "/v1")},
    **{f"{version}/tokenize": LIGHT._replace(path="/tokenize") for version in ("", "/v1")},
    **{f"{version}/detokenize": LIGHT._replace(path="/detokenize") for version in ("", "/v1")},
}
PLACES = (
    "",
    "/openai",
    "/v2/{endpoint}/openai",
)  # where they stand; at the first only those below /v1
MODEL_ROUTE = ROUTES["/v1/models"]  # and /v1/models/{id}, where an id may contain slashes

_ENDPOINT = re.compile(r"/v2/([A-Za-z0-9_-]{1,80})/openai(/.*)")
_MODELS = "/v1/models/"


class Match(NamedTuple):
    """What a path means."""

    route: Route
    path: str  # the engine's own path
    endpoint: str | None  # None: found by the model
    model: str | None = None  # named in the path


def match(path: str) -> Match | None:
    """What a path means; None when it is not in the table."""
    if found := _ENDPOINT.fullmatch(path):
        endpoint, rest = found.group(1), found.group(2)
    elif path.startswith("/openai/"):
        endpoint, rest = None, path.removeprefix("/openai")
    elif path.startswith("/v1/"):
        endpoint, rest = None, path
    else:
        return None
    rest = rest.removesuffix("/")
    route, model = ROUTES.get(rest), None
    if route is None and rest.startswith(_MODELS):
        route, model = MODEL_ROUTE, rest.removeprefix(_MODELS)
    return None if route is None else Match(route, route.path or rest, endpoint, model)


def is_openai(path: str) -> bool:
    """Whether a path belongs to this API, whatever may be there."""
    if path.startswith("/v2/"):
        return path[4:].partition("/")[2].startswith("openai/")
    return path.startswith(("/v1/", "/openai/"))


def unknown_route(path: str) -> ApiError:
    """The answer to a path of this API that is not in the table."""
    known = ", ".join(path for path in ROUTES if path.startswith("/v1/"))
    return ApiError("not_found", f"There is no {path[:200] or '/'} here. Known: {known}.")
