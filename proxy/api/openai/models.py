"""The list of models, as OpenAI's API shows it; answered without a worker."""

from collections.abc import Sequence

import msgspec

from proxy.service.endpoints import Model


def model_card(model: Model) -> bytes:
    """One model: the engine's own card where a worker has sent it, else the fields that every client reads."""
    if model.card is not None:
        return model.card
    return msgspec.json.encode(
        {"id": model.id, "object": "model", "created": 0, "owned_by": "vllm-serverless"}
    )


def model_list(models: Sequence[Model]) -> bytes:
    """All models, each name once."""
    cards = {model.id: msgspec.Raw(model_card(model)) for model in models}
    return msgspec.json.encode({"object": "list", "data": list(cards.values())})
