"""The responses of `/v1/models`, which need no worker, and the error for an unknown model."""

from collections.abc import Sequence

import msgspec

from proxy.api.errors import ApiError
from proxy.jobs.served_model import Model

# The parts of names, and the names, that an error message shows.
MODEL_SHOWN_MAX_CHARACTERS = 200
MODELS_SHOWN_MAX = 10


def model_card(model: Model) -> bytes:
    """Return the JSON of a model: the card of a worker, or the fields that clients require."""
    if model.card is not None:
        return model.card
    return msgspec.json.encode(
        {"id": model.id, "object": "model", "created": 0, "owned_by": "vllm-serverless"}
    )


def model_list(models: Sequence[Model]) -> bytes:
    """Return the JSON list of models; of several models with the same id, the last."""
    cards = {model.id: msgspec.Raw(model_card(model)) for model in models}
    return msgspec.json.encode({"object": "list", "data": list(cards.values())})


def unknown_model(model: str, endpoint: str | None, served: Sequence[str]) -> ApiError:
    """Return the error for a model that an endpoint, or for None any endpoint, does not serve."""
    where = "any endpoint" if endpoint is None else f"endpoint {endpoint}"
    names = [f"`{name[:MODEL_SHOWN_MAX_CHARACTERS]}`" for name in served[:MODELS_SHOWN_MAX]]
    shown = model[:MODEL_SHOWN_MAX_CHARACTERS]
    message = f"The model `{shown}` is not served by {where}."
    if names:
        message += f" Available: {', '.join(names)}."
    if len(names) < len(served) or not names:
        message += " See /v1/models for the available models."
    return ApiError("model_not_found", message, "model")
