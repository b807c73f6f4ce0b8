"""The context of one request of the queue API, which its operation receives."""

from collections.abc import Callable

from fastapi import Request

from proxy.access.body_budget import Share
from proxy.access.keys import ANONYMOUS, Principal
from proxy.api.http import JSON_TYPE, read_body, require_type
from proxy.service.endpoints import Endpoint

# Headers that only browsers send. A web page can send a body without a content type to any origin,
# without a preflight request.
BROWSER_HEADERS = (b"origin", b"sec-fetch-site")


class RequestContext:
    """The request, its endpoint, and its caller (`owner` and `key`).

    `leave` ends the request for the rate limits; the operation may take it over.
    """

    def __init__(
        self, request: Request, endpoint: Endpoint, principal: Principal, share: Share
    ) -> None:
        self.request = request
        self.endpoint = endpoint
        self.owner = principal.owner
        self.key = principal.key_id
        self._is_open = principal is ANONYMOUS
        self._share = share
        self.leave: Callable[[], None] = nothing

    def drop_body(self) -> None:
        """Give the body's bytes back to the budget, once the job is in the store."""
        self._share.give_back()

    def query(self, name: str) -> str | None:
        return self.request.query_params.get(name)

    async def body(self, limit: int) -> bytes:
        """Return the body, at most `limit` bytes.

        A missing content type counts as JSON, except in a browser's request to a proxy without API
        keys. Raises `ApiError`, `BudgetError` or `ClientGoneError`.
        """
        headers = dict(self.request.scope["headers"])
        is_browser = not headers.keys().isdisjoint(BROWSER_HEADERS)
        default = b"" if self._is_open and is_browser else JSON_TYPE
        require_type(headers.get(b"content-type", default), JSON_TYPE)
        return await read_body(self.request.receive, headers, limit, self._share)


def nothing() -> None:
    """Do nothing: the default of `RequestContext.leave`."""
