"""The table of the engine's routes that clients may call. All other paths are not found.

Each route exists below three prefixes: `/v2/{endpoint}/openai/…`, `/openai/…` and `/v1/…`. The last
two find the endpoint by the request's `model`. `edge.routes` accepts these routes and no others,
and passes the row of a request on to the handler.
Responses are not stored, so routes that get or cancel a response by its id do not exist.
"""

from enum import Enum, auto
from typing import NamedTuple

from proxy.api.errors import ApiError
from proxy.api.openai.dialects import ANTHROPIC, OPENAI, RESPONSES, Dialect

BODY_MAX_BYTES = 20 * 1024 * 1024


class AnsweredBy(Enum):
    """The component that answers a route."""

    # A job: the engine receives the body and returns the response.
    WORKER = auto()
    # The registry of models, without a worker.
    MODELS = auto()


class OpenAiRoute(NamedTuple):
    """The properties of a route.

    `is_light` means that its jobs take no slot, and `is_form` that the body is multipart/form-data.
    `path` is the engine's path.
    """

    methods: tuple[str, ...] = ("POST",)
    answered_by: AnsweredBy = AnsweredBy.WORKER
    dialect: Dialect = OPENAI
    is_light: bool = False
    is_form: bool = False
    path: str = ""


LIGHT_ROUTE = OpenAiRoute(is_light=True)

# By the path below a prefix, which is also the engine's path where a route does not name one.
_ROUTES: dict[str, OpenAiRoute] = {
    "/v1/chat/completions": OpenAiRoute(),
    "/v1/completions": OpenAiRoute(),
    "/v1/responses": OpenAiRoute(dialect=RESPONSES),
    "/v1/messages": OpenAiRoute(dialect=ANTHROPIC),
    "/v1/messages/count_tokens": LIGHT_ROUTE._replace(dialect=ANTHROPIC),
    "/v1/embeddings": OpenAiRoute(),
    "/v1/audio/transcriptions": OpenAiRoute(is_form=True),
    "/v1/audio/translations": OpenAiRoute(is_form=True),
    "/v1/models": OpenAiRoute(("GET", "HEAD"), AnsweredBy.MODELS),
    **{f"{version}/rerank": OpenAiRoute() for version in ("", "/v1", "/v2")},
    **{f"{version}/score": OpenAiRoute() for version in ("", "/v1")},
    **{f"{version}/pooling": OpenAiRoute(path="/pooling") for version in ("", "/v1")},
    **{f"{version}/tokenize": LIGHT_ROUTE._replace(path="/tokenize") for version in ("", "/v1")},
    **{
        f"{version}/detokenize": LIGHT_ROUTE._replace(path="/detokenize") for version in ("", "/v1")
    },
}
ROUTES: dict[str, OpenAiRoute] = {
    path: route._replace(path=route.path or path) for path, route in _ROUTES.items()
}
# The prefixes of the routes. Without a prefix, only the routes below /v1 exist.
PREFIXES = ("", "/openai", "/v2/{endpoint}/openai")
# Also the route of /v1/models/{id}; an id may contain slashes.
MODEL_ROUTE = ROUTES["/v1/models"]


def unknown_route(path: str) -> ApiError:
    """Return the error for a path of this API that is not in the table."""
    known = ", ".join(path for path in ROUTES if path.startswith("/v1/"))
    return ApiError("not_found", f"Unknown path {path[:200] or '/'}. Available: {known}.")
