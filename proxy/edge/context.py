"""The configuration and the state that all connections share."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TypeAlias

from proxy.api.errors import RenderError
from proxy.api.openai.fast_lane import FastLane
from proxy.edge.connections import ConnectionLimiter, Pace
from proxy.edge.head import Fields, Hosts
from proxy.edge.lane_protocol import AdmittedHeads

IsWorker: TypeAlias = Callable[[str, Fields], bool]
"""Returns True if a request (path and fields) comes from a worker with a valid token."""


@dataclass(frozen=True, slots=True)
class EdgeContext:
    """The configuration and the state that all connections share."""

    hosts: Hosts
    pace: Pace
    connections: ConnectionLimiter
    render_error: RenderError
    is_worker: IsWorker
    # None: it is switched off.
    lane: FastLane | None = None
    heads: AdmittedHeads = field(default_factory=AdmittedHeads)
