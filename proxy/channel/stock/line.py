"""uvicorn's HTTP protocol with what tells whether a stock worker lives: how its connections end.

The SDK pings from a process of its own, which outlives the one that works. But when a process dies, its kernel closes
its connections, at once. So the connections of the working process are watched, and never closed from here.
"""

from collections.abc import Callable
from typing import NamedTuple, Protocol

LINE = "vllm_serverless.line"  # the ASGI extension: the connection on which a request came
HOUSEKEEPING_SECONDS = 14.0  # HTTP clients close what was idle for some time (the SDK's after 15 s); that says nothing


class Closing(NamedTuple):
    """How a connection ended."""

    is_ours: bool  # this side closed it
    is_reset: bool  # the other end was gone with bytes unread
    idle: float | None  # seconds since the last answer; None: in the middle of a request

    @property
    def is_abrupt(self) -> bool:
        """Whether it looks as if the other process had ended."""
        return not self.is_ours and (self.is_reset or self.idle is None or self.idle < HOUSEKEEPING_SECONDS)


OnClosed = Callable[[Closing], None]


class Line(Protocol):
    """A connection that can be watched."""

    def watch(self, on_closed: OnClosed) -> None:
        """Keep it open, and tell how it ends."""
        ...
