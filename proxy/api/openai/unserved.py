"""The error for a route that the engine of a model does not serve, such as embeddings of a chat
model.

A worker of this project announces the routes of its engine, so that the proxy rejects such a call
before it waits for a worker. The routes of other engines are unknown: they answer 404 or 405, and a
body that no client expects, such as `{"detail": "Not Found"}`. The proxy replaces that body.
"""

from collections.abc import Container
from http import HTTPStatus

import msgspec

from proxy.api.errors import ApiError
from proxy.api.openai.routes import ROUTES

NOT_SERVED_STATUSES = (HTTPStatus.NOT_FOUND, HTTPStatus.METHOD_NOT_ALLOWED)
# A larger body is passed on.
ENGINE_BODY_MAX_BYTES = 64 * 1024
# A message quotes this much of the engine's body.
DETAIL_MAX_CHARACTERS = 200


class _EngineBody(msgspec.Struct):
    """The fields of an engine's body by which it is recognized.

    `error` is part of every error object, and `detail` of the errors of FastAPI.
    """

    error: msgspec.Raw = msgspec.Raw(b"")
    detail: object = None


def not_served(model: str, path: str, served: Container[str]) -> ApiError:
    """Return the error for a route that is not among the routes that the engine has announced."""
    known = [known for known, route in ROUTES.items() if route.path == known and known in served]
    return ApiError(
        "route_not_served",
        f"The model `{model}` does not support {path}. It supports: {', '.join(known) or 'none'}.",
        "model",
    )


def explain(model: str, path: str, status: int, body: bytes) -> ApiError | None:
    """Return the error that replaces an engine's answer, or None if the answer is passed on.

    An answer with an error object is passed on: such a 404 can be about the model or another thing.
    """
    if status not in NOT_SERVED_STATUSES or len(body) > ENGINE_BODY_MAX_BYTES:
        return None
    detail: object = body.decode(errors="replace").strip()
    try:
        found = msgspec.json.decode(body, type=_EngineBody)
    except (msgspec.MsgspecError, RecursionError):
        pass
    else:
        if found.error:
            return None
        detail = found.detail or detail
    return ApiError(
        "route_not_served",
        f"The engine of the model `{model}` does not serve {path}: it answered {int(status)}"
        f" ({str(detail)[:DETAIL_MAX_CHARACTERS]}). Use a model that supports this route.",
        "model",
    )
