"""The heads of requests that were checked and admitted to the fast lane, for all connections.

The result of the checks depends only on the head and on the configuration, so an equal head has an
equal result. The value of `Content-Length` is not part of it.
"""

import re
from collections.abc import Sequence
from typing import NamedTuple, TypeAlias

from proxy.api.openai.fast_lane import BODY_MAX_BYTES, Admitted

CONTENT_LENGTH = b"content-length"
LENGTH_MAX_DIGITS = 5
HEAD_END = b"\r\n\r\n"
# A client has one or two heads. Some clients send a new one with each request, which must not fill
# the memory.
HEADS_MAX = 1_000

_LENGTH = re.compile(rb"(?i)\r\ncontent-length:[ \t]*([0-9]{1,5})[ \t]*(?:\r\n|\Z)")

HeadKey: TypeAlias = tuple[bytes | tuple[bytes, bytes], ...]
"""The target and the fields of a head, in their order, without `Content-Length`."""


class RawHead(NamedTuple):
    """The bytes of an admitted head before and after the value of its `Content-Length`, with the
    blank line.
    """

    start: bytes
    end: bytes
    admitted: Admitted

    def body_of(self, data: bytes) -> bytes | None:
        """Return the body if `data` is exactly one request with this head, else None."""
        if not data.startswith(self.start):
            return None
        place = len(self.start)
        end = data.find(b"\r", place, place + LENGTH_MAX_DIGITS + 1)
        length = data[place:end]
        if end < 0 or not is_small(length) or not data.startswith(self.end, end):
            return None
        body = end + len(self.end)
        return data[body:] if len(data) - body == int(length) else None


class AdmittedHeads:
    """The heads, by their parsed fields and by their bytes."""

    def __init__(self) -> None:
        self._parsed: dict[HeadKey, Admitted] = {}
        self._raw: dict[tuple[bytes, bytes], RawHead] = {}

    def find(self, key: HeadKey) -> Admitted | None:
        """Return the meaning of a head, if it was admitted before."""
        return self._parsed.get(key)

    def add(self, key: HeadKey, admitted: Admitted) -> None:
        """Keep the meaning of a head."""
        if len(self._parsed) >= HEADS_MAX:
            self._parsed.clear()
        self._parsed[key] = admitted

    def raw(self, data: bytes, admitted: Admitted) -> RawHead | None:
        """Return the bytes of an admitted head, from the data of exactly one request, up to blank
        lines before and after it; None if they cannot be found.
        """
        head, _, body = data.partition(HEAD_END)
        length = _LENGTH.search(head)
        if length is None or len(body) != int(length[1]):
            return None
        start, end = length.span(1)
        key = (head[:start], head[end:] + HEAD_END)
        found = self._raw.get(key)
        if found is None or found.admitted != admitted:
            if len(self._raw) >= HEADS_MAX:
                self._raw.clear()
            found = self._raw[key] = RawHead(*key, admitted)
        return found


def head_key(target: bytes, fields: Sequence[tuple[bytes, bytes]]) -> HeadKey | None:
    """Return the key of a head; None without a `Content-Length` of a body that the lane takes."""
    for place, (name, value) in enumerate(fields):
        if name == CONTENT_LENGTH:
            return (target, *fields[:place], *fields[place + 1 :]) if is_small(value) else None
    return None


def is_small(length: bytes) -> bool:
    """Return True if a `Content-Length` is that of a body which the lane takes."""
    return (
        length.isdigit() and len(length) <= LENGTH_MAX_DIGITS and 0 < int(length) <= BODY_MAX_BYTES
    )
