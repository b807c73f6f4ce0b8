"""Errors, as the queue API tells them."""

import msgspec
from fastapi import Response

from proxy.api.errors import ApiError


def refusal(error: ApiError) -> Response:
    """The answer to a request that is refused."""
    headers = {name.decode(): value.decode() for name, value in error.headers()}
    return Response(queue_error(error), error.row.status, headers, media_type="application/json")


def queue_error(error: ApiError) -> bytes:
    """The body of an error as this API tells it."""
    return msgspec.json.encode({"error": error.message})
