"""The table of the engine's routes that clients may call. All other paths are not found.

Each route exists with and without `/v1`, at three bases: `/v2/{endpoint}/openai`, `/openai` and the
root. The last two find the endpoint by the request's `model`. `edge.gate` accepts these routes and
no others, and passes the row of a request on to the handler.
Responses are not stored, so routes that get or cancel a response by its id do not exist.
"""

import re
from enum import Enum, auto
from typing import NamedTuple

from proxy.api.errors import ApiError
from proxy.api.openai.dialects import ANTHROPIC, OPENAI, RESPONSES, Dialect

JSON_BODY_MAX_BYTES = 20 * 1024 * 1024
# A file of 25 MiB, the limit of OpenAI and of vLLM, and the rest of its form.
FORM_BODY_MAX_BYTES = 26 * 1024 * 1024


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

VERSION = "/v1"

# By the engine's path.
_ENGINE_ROUTES: dict[str, OpenAiRoute] = {
    "/v1/chat/completions": OpenAiRoute(),
    "/v1/chat/completions/batch": OpenAiRoute(),
    "/v1/completions": OpenAiRoute(),
    "/v1/responses": OpenAiRoute(dialect=RESPONSES),
    "/v1/messages": OpenAiRoute(dialect=ANTHROPIC),
    "/v1/messages/count_tokens": LIGHT_ROUTE._replace(dialect=ANTHROPIC),
    "/v1/embeddings": OpenAiRoute(),
    "/v2/embed": OpenAiRoute(),
    "/v1/audio/transcriptions": OpenAiRoute(is_form=True),
    "/v1/audio/translations": OpenAiRoute(is_form=True),
    "/v1/models": OpenAiRoute(("GET", "HEAD"), AnsweredBy.MODELS),
    **{f"{version}/rerank": OpenAiRoute() for version in ("", "/v1", "/v2")},
    **{f"{version}/score": OpenAiRoute() for version in ("", "/v1")},
    "/pooling": OpenAiRoute(),
    "/classify": OpenAiRoute(),
    "/tokenize": LIGHT_ROUTE,
    "/detokenize": LIGHT_ROUTE,
}


_OWN_FORMS = {path: route._replace(path=path) for path, route in _ENGINE_ROUTES.items()}
_WITHOUT_VERSION = {path.removeprefix(VERSION): route for path, route in _OWN_FORMS.items()}
_WITH_VERSION = {
    f"{VERSION}{path}": route
    for path, route in _OWN_FORMS.items()
    if not path.startswith((f"{VERSION}/", "/v2/"))
}
# By the path below a base. A form that is a path of the engine keeps its meaning.
ROUTES: dict[str, OpenAiRoute] = _OWN_FORMS | _WITHOUT_VERSION | _WITH_VERSION | _OWN_FORMS
BASES = ("", "/openai", "/v2/{endpoint}/openai")
# Also the route of /v1/models/{id} and /models/{id}; an id may contain slashes.
MODEL_ROUTE = ROUTES["/v1/models"]
MODEL_PATHS = ("/v1/models/{model}", "/models/{model}")

# A path is cut to this length in an error message.
SHOWN_PATH_CHARACTERS = 200

_REPEATED_VERSION = re.compile(rf"(?:{VERSION})+(?={VERSION}/)")


def unknown_route(path: str) -> ApiError:
    """Return the error for a path of this API that is not in the table."""
    known = ", ".join(path for path in ROUTES if path.startswith(f"{VERSION}/"))
    shown = path[:SHOWN_PATH_CHARACTERS] or "/"
    return ApiError("not_found", f"Unknown path {shown}. Available: {known}.")


def without_repeated_version(path: str) -> str:
    """Return a path with `/v1` once where it is repeated: a client adds it to its base URL."""
    return _REPEATED_VERSION.sub("", path)
