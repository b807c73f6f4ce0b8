"""uvicorn's HTTP protocol with what tells whether a stock worker lives: how its connections end.

The SDK pings from a process of its own, which outlives the one that works. But when a process dies, its kernel closes
its connections, at once. So the connections of the working process are watched, and never closed from here.
"""

from collections.abc import Callable
from typing import NamedTuple, Protocol

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from proxy.wire.sockets import notice_silence

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


class LineProtocol(HttpToolsProtocol):
    """Mixed into the proxy's HTTP protocol; each request's scope names its connection."""

    _watchers: tuple[OnClosed, ...] = ()  # more than one where a reverse proxy carries several workers on one line
    _answered_at = 0.0

    def watch(self, on_closed: OnClosed) -> None:
        self._watchers += (on_closed,)
        notice_silence(self.transport.get_extra_info("socket"))

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self.scope.setdefault("extensions", {})[LINE] = self  # type: ignore[assignment]

    def on_response_complete(self) -> None:
        self._answered_at = self.loop.time()
        super().on_response_complete()

    def timeout_keep_alive_handler(self) -> None:
        if not self._watchers:
            super().timeout_keep_alive_handler()

    def connection_lost(self, exc: Exception | None) -> None:
        watchers, self._watchers = self._watchers, ()
        if watchers:
            is_busy = not self.cycle.response_complete
            is_ours = not self.cycle.keep_alive
            idle = None if is_busy else self.loop.time() - self._answered_at
            closing = Closing(is_ours, exc is not None, idle)
            for on_closed in watchers:
                on_closed(closing)
        super().connection_lost(exc)
