"""Whether a stock worker lives: what its pings and its connections say, weighed.

Pings alone prove nothing, for they come from a process that outlives the one that works. Connections alone do neither:
a handler that blocks its event loop polls nothing for minutes. Together: a ping renews the lease as long as the working
process has not left its connections in a way that looks like its death. A worker that closes its idle connections in
peace (it drains, or its SDK is too old to poll for stops) lives by its pings.
"""

from collections.abc import Callable
from dataclasses import dataclass
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


TOGETHER_SECONDS = 1.0  # the connections of a process that ends are closed one after the other, but not slower


@dataclass(frozen=True, slots=True)
class Patience:
    """How many seconds stock workers are waited for."""

    hold: float = 20.0  # a poll is answered by then; the SDK gives one up after 90 s
    lease: float = 35.0  # three of the SDK's pings, and a bit
    gap: float = 10.0  # until a process whose connections broke counts as gone


@dataclass(slots=True)
class Liveness:
    """The evidence. Times are the event loop's."""

    heard: float
    lines: int = 0  # open connections of its working process
    left_at: float = 0.0  # when the last of them closed
    abrupt_at: float = float("-inf")  # when one last closed in a way that looks like death
    died_at: float = float("-inf")  # when it last looked dead altogether

    def opened(self) -> None:
        """The working process has made a connection."""
        self.lines += 1

    def closed(self, closing: Closing, now: float) -> None:
        """One of these connections has ended."""
        self.lines -= 1
        if closing.is_abrupt:
            self.abrupt_at = now
        if self.lines == 0:
            self.left_at = now
            if self._looks_dead:
                self.died_at = now

    def loss(self, now: float, patience: Patience) -> str:
        """Why it counts as lost; empty as long as it does not."""
        if not self.lines and self._looks_dead and now - self.left_at > patience.gap:
            return "its process ended"
        if now - self.heard > patience.lease:
            return f"silent for {patience.lease:g} s"
        return ""

    @property
    def _looks_dead(self) -> bool:
        return self.left_at - self.abrupt_at <= TOGETHER_SECONDS
