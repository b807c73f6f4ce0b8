"""Comparison of the elements that a run has posted with the list of all of them in its result.

The SDK posts each yielded value by itself and, with `return_aggregate_stream`, all of them again as
the result. A post that failed leaves a hole in the output log, and a repeated one an element that
does not belong there. The elements are not kept: a digest of each is enough to find both.

Nothing in this module does I/O or reads the clock.
"""

from collections.abc import Iterable
from contextlib import suppress
from hashlib import blake2b
from typing import NamedTuple

import msgspec

DIGEST_BYTES = 16
# A list with more commas is not compared: the elements of a parsed list take 60 bytes each, in
# addition to their text.
LIST_MAX_COMMAS = 1_000_000
# The SDK waits for at least two seconds before it repeats a post. An equal body that comes sooner
# after a lost response is the next element, which has the same value.
REPETITION_SECONDS = 1.0

_list_decoder = msgspec.json.Decoder(list[msgspec.Raw])


def digest(element: bytes) -> bytes:
    """Return a digest of a JSON text that does not depend on the blanks between its values."""
    with suppress(RecursionError):
        element = msgspec.json.format(element, indent=-1)
    return blake2b(element, digest_size=DIGEST_BYTES).digest()


class PostedElements:
    """The elements of one run that have arrived, in their order."""

    def __init__(self, elements: Iterable[bytes] = ()) -> None:
        self._digests = bytearray()
        self.extend(elements)
        # The connection of a post that has not been answered. Only its identity matters.
        self.connection: object | None = None
        # The time at which the connection of the last post ended before its response.
        self._lost_at: float | None = None

    def __len__(self) -> int:
        return len(self._digests) // DIGEST_BYTES

    def __getitem__(self, index: int) -> bytes:
        return bytes(self._digests[index * DIGEST_BYTES : (index + 1) * DIGEST_BYTES])

    def extend(self, elements: Iterable[bytes]) -> None:
        """Add elements that are in the store."""
        self._digests += b"".join(map(digest, elements))

    def add(self, element_digest: bytes) -> None:
        """Add an element that has been given to the sink of its run."""
        self._digests += element_digest

    def begin(self, connection: object, element_digest: bytes, now: float) -> bool:
        """Note the start of a post; return False if it repeats the last one: the same element, at
        least `REPETITION_SECONDS` after the response to the last one was lost.
        """
        lost_at = self._lost_at
        self.connection = connection
        self._lost_at = None
        is_repeated = (
            lost_at is not None
            and now - lost_at >= REPETITION_SECONDS
            and len(self) > 0
            and self[len(self) - 1] == element_digest
        )
        return not is_repeated

    def answered(self, connection: object) -> None:
        """Note that a post over this connection has been answered."""
        if self.connection is connection:
            self.connection = None

    def closed(self, connection: object, now: float) -> None:
        """Note the end of a connection."""
        if self.connection is connection:
            self.connection = None
            self._lost_at = now

    def may_repeat(self, index: int) -> bool:
        """Return True if there is an element at this index that equals the one before it."""
        return 0 < index < len(self) and self[index] == self[index - 1]


class Difference(NamedTuple):
    """The difference between the elements that have arrived and the list of all.

    The first `start` elements are equal; `missing` are the elements of the list after them.
    `is_at_end`: nothing else has arrived.
    """

    start: int
    missing: list[bytes]
    is_at_end: bool


def find_difference(posted: PostedElements, output: bytes) -> Difference | None:
    """Compare with the output of a result, which is JSON.

    Returns None if both are equal, or if the output cannot be the list of all elements: it is not a
    list, or it is empty as without `return_aggregate_stream`, or lost and repeated posts do not
    explain the difference. The latter happens if a handler changes a value after it yielded it.
    """
    if output[:1] != b"[" or output.count(b",") >= LIST_MAX_COMMAS:
        return None
    listed = _list_decoder.decode(output)
    start = 0
    end = min(len(listed), len(posted))
    while start < end and digest(bytes(listed[start])) == posted[start]:
        start += 1
    rest = listed[start:]
    is_at_end = start == len(posted)
    if not listed or (is_at_end and not rest) or not _is_explained(posted, start, rest):
        return None
    return Difference(start, [bytes(listed_element) for listed_element in rest], is_at_end)


def _is_explained(posted: PostedElements, start: int, rest: Iterable[msgspec.Raw]) -> bool:
    """Return True if the elements from `start` on are some of `rest` in its order, repeated or
    not.
    """
    index = start
    for listed_element in rest:
        while posted.may_repeat(index):
            index += 1
        if index == len(posted):
            break
        if digest(bytes(listed_element)) == posted[index]:
            index += 1
    while posted.may_repeat(index):
        index += 1
    return index == len(posted)
