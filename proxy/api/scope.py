"""Typed access to the values that the edge adds to the ASGI scope of a request."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

from proxy.access.keys import Principal
from proxy.api.openai.routes import OpenAiRoute

# The ASGI extension that closes the connection of a request.
ABORT_EXTENSION = "vllm_serverless.abort"

_ROUTING = "vllm_serverless.routing"


class PathParameters(NamedTuple):
    """The values of the parameters in a path; None for a parameter that its route does not have."""

    endpoint: str | None = None
    job: str | None = None
    model: str | None = None
    # The rest of a path of the Runpod worker API.
    call: str | None = None


@dataclass(frozen=True, slots=True)
class Routing:
    """The results of routing and authentication.

    `openai` is None for a path of another API and for an unknown path. `principal` is None for a
    public route and for a request that is refused.
    """

    parameters: PathParameters
    openai: OpenAiRoute | None = None
    principal: Principal | None = None

    @property
    def caller(self) -> Principal:
        """The principal of a route that requires a key. Raises LookupError on other routes."""
        if self.principal is None:
            raise LookupError("The caller of this request was not authenticated.")
        return self.principal


def set_routing(scope: Any, routing: Routing) -> None:
    """Add the gate's results to a request."""
    scope["state"][_ROUTING] = routing


def routing_of(scope: Any) -> Routing:
    """Return the gate's results; they are empty for a request that has not passed the gate."""
    found: Routing | None = scope["state"].get(_ROUTING)
    return found or Routing(PathParameters())


def abort_of(scope: Any) -> Callable[[], None]:
    """Return the function that closes the connection of a request.

    On a server without the ASGI extension it does nothing.
    """
    found: Callable[[], None] = scope.get("extensions", {}).get(ABORT_EXTENSION, _nothing)
    return found


def _nothing() -> None:
    pass
