"""The responses of `/v1/models`, which need no worker."""

from collections.abc import Sequence

import msgspec

from proxy.jobs.served_model import Model


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
