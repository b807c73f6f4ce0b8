"""Flow control of one run's output: what the receiver asks for, and what the sender may send.

The receiver (the proxy) counts the bytes that wait for their reader. Above the high watermark it
asks the sender to pause; below the low watermark it asks it to resume. A pause can arrive late, so
the sender (the worker) also keeps a window: at most `STREAM_WINDOW` bytes that the receiver has not
acknowledged. The receiver therefore sends `Resume` after each half window that its reader has
taken, even if it never paused the sender. See docs/flow-control.md.

Both classes only count. Their owner sends the frames.
"""

from dataclasses import dataclass

from proxy.wire.frames import STREAM_WINDOW, WHOLE_WINDOW

HIGH_WATERMARK_BYTES = 128 * 1024
LOW_WATERMARK_BYTES = 32 * 1024


@dataclass(slots=True)
class ReceiveFlow:
    """The receiver's side: `backlog` is the number of received bytes that await consumption."""

    low_watermark: int = LOW_WATERMARK_BYTES
    backlog: int = 0
    taken: int = 0
    """Bytes taken since the last `Resume`; negative while bytes that were acknowledged early are
    outstanding.
    """
    is_paused: bool = False

    def received(self, size: int) -> None:
        """Count bytes that have arrived."""
        self.backlog += size

    def should_pause(self) -> bool:
        """Return True, once, when the sender has to be paused."""
        if self.is_paused or self.backlog <= HIGH_WATERMARK_BYTES:
            return False
        self.is_paused = True
        return True

    def consumed(self, size: int) -> None:
        """Count bytes that have been taken out of the backlog."""
        self.backlog -= size
        self.taken += size

    def resume(self, held: int = 0) -> int | None:
        """Return the bytes to acknowledge, once, when the sender may continue; else None.

        `held`: received bytes outside the backlog that cannot be taken before the sender has sent
        more, such as the parts of an incomplete event. They count as taken, or sender and receiver
        would wait for each other.
        """
        is_due = self.is_paused or self.taken + held >= STREAM_WINDOW // 2
        if not is_due or self.backlog >= self.low_watermark:
            return None
        self.is_paused = False
        acknowledged = max(0, self.taken + held)
        self.taken -= acknowledged
        return acknowledged

    def restart(self) -> None:
        """Forget what the sender was asked for: its connection was replaced."""
        self.is_paused = False
        self.taken = 0


@dataclass(slots=True)
class SendFlow:
    """The sender's side: whether more output may be sent now."""

    has_window: bool = False
    """True if the window applies: for streams and the outputs of jobs, not for whole answers."""
    unacknowledged: int = 0
    """Bytes sent that the receiver has not acknowledged."""
    is_paused: bool = False

    @property
    def may_send(self) -> bool:
        """Return True if the sender is neither paused nor at the end of its window."""
        return not self.is_paused and self.unacknowledged < STREAM_WINDOW

    def sent(self, size: int) -> None:
        """Count bytes that are on their way."""
        if self.has_window:
            self.unacknowledged += size

    def pause(self) -> None:
        """Send nothing until `resume`."""
        self.is_paused = True

    def restart(self, size: int) -> None:
        """Start again over a new connection, on which `size` bytes are sent again."""
        if self.has_window:
            self.unacknowledged = size

    def resume(self, acknowledged: int = WHOLE_WINDOW) -> None:
        """Continue. Without a number of acknowledged bytes, a new window starts."""
        self.is_paused = False
        if acknowledged == WHOLE_WINDOW:
            self.unacknowledged = 0
        else:
            self.unacknowledged = max(0, self.unacknowledged - acknowledged)
