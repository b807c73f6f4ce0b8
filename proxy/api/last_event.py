"""Recognises the event that ends an answer, in the bytes of a stream that are written to its client.

The dialects end differently: `data: [DONE]` (chat, completions, audio), `response.completed` and its sisters
(responses), `message_stop` (messages), and each with an error event, after which its clients stop reading.
"""

import re

START_BYTES = 64  # of an event: what it is stands at its beginning
EDGE_BYTES = 3  # a blank line may be cut into two pieces

_LAST = re.compile(
    rb"(?:data: ?\[DONE\]|event: ?(?:response\.(?:completed|incomplete|failed)|message_stop|error))\s"
    rb'|data: ?\{\s*"error"\s*:\s*[{"]'
)


class LastEvent:
    """Follows one stream."""

    def __init__(self) -> None:
        self.has_come = False  # the last event that was written is one that ends an answer
        self._start = b""  # of the event that goes on
        self._edge = b""  # the end of what was written of it

    def feed(self, data: bytes, *, more: bool) -> None:
        """Note what was written; `more` means that it ends in the middle of an event."""
        window = self._edge + data
        end = len(window) if more else len(window.rstrip())
        border = max(window.rfind(b"\n\n", 0, end), window.rfind(b"\n\r\n", 0, end))
        if border >= 0:
            start = window[border : border + START_BYTES].lstrip()
        else:
            start = (self._start + data[:START_BYTES])[:START_BYTES]
        self.has_come = not more and _LAST.match(start + b"\n") is not None
        self._start, self._edge = (start, window[-EDGE_BYTES:]) if more else (b"", b"")
