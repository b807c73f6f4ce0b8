"""One request of the queue API, as its operations see it."""

from collections.abc import Callable

from fastapi import Request

from proxy.access.body_budget import Share
from proxy.access.keys import ANONYMOUS, Principal
from proxy.api.body import JSON_TYPE, read_body, require_type
from proxy.service.endpoints import Endpoint

BROWSER_HEADERS = (
    b"origin",
    b"sec-fetch-site",
)  # a page can send a body without a type anywhere, with no preflight request


class RequestContext:
    """One request: who asks, and which endpoint."""

    def __init__(
        self, request: Request, endpoint: Endpoint, principal: Principal, share: Share
    ) -> None:
        self.request, self.endpoint, self.owner = request, endpoint, principal.owner
        self.key = principal.key_id
        self._is_open = principal is ANONYMOUS
        self._share = share
        self.leave: Callable[[], None] = nothing  # the request is over, for the limits

    def drop_body(self) -> None:
        """What the body said is in the store: others can have its room."""
        self._share.give_back()

    def query(self, name: str) -> str | None:
        return self.request.query_params.get(name)

    async def body(self, limit: int) -> bytes:
        """Read the body. Without a type it is JSON, unless a web page sent it to a proxy without a key."""
        headers = dict(self.request.scope["headers"])
        default = (
            b"" if self._is_open and not headers.keys().isdisjoint(BROWSER_HEADERS) else JSON_TYPE
        )
        require_type(headers.get(b"content-type", default), JSON_TYPE)
        return await read_body(self.request.receive, headers, limit, self._share)


def nothing() -> None:
    """There is nothing to leave, or it was left to somebody else."""
