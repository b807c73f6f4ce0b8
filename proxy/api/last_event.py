"""Detects the final event of a stream in the bytes that are written to the client.

The final event depends on the dialect: `data: [DONE]` (chat, completions, audio),
`response.completed`, `response.incomplete` or `response.failed` (responses), `message_stop`
(messages). An error event is final in every dialect: clients stop reading after it.
"""

import re

# The beginning of an event, which determines its kind.
EVENT_START_BYTES = 64
# A blank line (`\r\n\r\n` at most) may be split between two writes.
OVERLAP_BYTES = 3

_LAST = re.compile(
    rb"(?:data: ?\[DONE\]"
    rb"|event: ?(?:response\.(?:completed|incomplete|failed)|message_stop|error))\s"
    rb'|data: ?\{\s*"error"\s*:\s*[{"]'
)


class LastEvent:
    """Incremental detector for one stream.

    `has_come` is True if the last event that was written is a final one.
    """

    def __init__(self) -> None:
        self.has_come = False
        # The first bytes of the event that is being written.
        self._start = b""
        # The last bytes that were written of it.
        self._overlap = b""

    def feed(self, data: bytes, *, more: bool) -> None:
        """Process bytes that were written; `more` is True if they end in the middle of an event."""
        window = self._overlap + data
        end = len(window) if more else len(window.rstrip())
        boundary = max(window.rfind(b"\n\n", 0, end), window.rfind(b"\n\r\n", 0, end))
        if boundary >= 0:
            start = window[boundary : boundary + EVENT_START_BYTES].lstrip()
        else:
            start = (self._start + data[:EVENT_START_BYTES])[:EVENT_START_BYTES]
        self.has_come = not more and _LAST.match(start + b"\n") is not None
        if more:
            self._start = start
            self._overlap = window[-OVERLAP_BYTES:]
        else:
            self._start = b""
            self._overlap = b""
