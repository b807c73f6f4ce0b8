"""A model that an endpoint serves."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Model:
    """A model by its public name, with the engine's model card (a JSON object) if a worker has sent
    one.

    `base` is False for an adapter on a base model. `routes` are the paths of the engine that serve
    the model; empty if they are unknown.
    """

    id: str
    card: bytes | None = None
    base: bool = True
    routes: frozenset[str] = frozenset()
