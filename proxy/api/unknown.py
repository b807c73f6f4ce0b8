"""The errors for an endpoint or a model that is not served; they name what is."""

from collections.abc import Sequence

from proxy.api.errors import ApiError
from proxy.service.endpoints import Endpoint, Endpoints, listed

# Error messages show this much of an unknown name.
NAME_SHOWN_MAX_CHARACTERS = 200


def unknown_endpoint(name: str, endpoints: Endpoints) -> ApiError:
    """Return the error for an endpoint that this proxy does not have."""
    served = listed([endpoint.id for endpoint in endpoints])
    shown = name[:NAME_SHOWN_MAX_CHARACTERS]
    return ApiError(
        "endpoint_not_found", f"Unknown endpoint {shown!r}. This proxy serves: {served}."
    )


def unknown_model(model: str, endpoint: Endpoint | None, endpoints: Endpoints) -> ApiError:
    """Return the error for a model that an endpoint does not serve; without one, none serves it."""
    searched: Sequence[Endpoint] = [*endpoints] if endpoint is None else [endpoint]
    known = {one.id: None for place in searched for one in endpoints.models(place)}
    where = "any endpoint" if endpoint is None else f"endpoint {endpoint.id}"
    served = f"Served: {listed([*known])}." if known else "No worker has announced a model yet."
    shown = model[:NAME_SHOWN_MAX_CHARACTERS]
    return ApiError(
        "model_not_found", f"The model `{shown}` is not served by {where}. {served}", "model"
    )
