"""Validation of JSON that is passed on unchanged: it is checked and never parsed into objects.

Objects would take 25 times the memory of the text. A check takes no memory, but it holds the
interpreter lock and so blocks the event loop, even in a thread. Therefore the number of elements in
a text is limited, and large texts are checked one at a time. See docs/decisions/0009.
"""

import asyncio
import codecs
from collections.abc import Callable
from functools import cache
from threading import Lock
from typing import TypeVar

import msgspec

Found = TypeVar("Found")

# Larger texts are checked in a thread: one megabyte takes a few milliseconds.
INLINE_MAX_BYTES = 256 * 1024
SLICE_BYTES = 64 * 1024
# Steps in a client's body. A step takes up to 5 ns; a byte without one takes 0.4 ns.
BODY_MAX_STEPS = 6_000_000
# Steps in a worker's output, which is trusted more and would be lost if it was rejected.
OUTPUT_MAX_STEPS = 20_000_000
_MARKS = b",:[{\\"
_BLANKS = b" \t\r\n"

_value = msgspec.json.Decoder(msgspec.Raw)


async def in_thread_if_large(work: Callable[[bytes], Found], text: bytes) -> Found:
    """Return `work(text)`, computed in a thread if the text is large."""
    if len(text) > INLINE_MAX_BYTES:
        return await asyncio.to_thread(_one_at_a_time, _large_text_lock(), work, text)
    return work(text)


def utf8_fault(text: bytes) -> int | None:
    """Return the position of the first byte that is not UTF-8, or None.

    The text is decoded in slices, since all of it could take four times its bytes.
    """
    if len(text) <= SLICE_BYTES:
        try:
            text.decode()
        except UnicodeDecodeError as error:
            return error.start
        return None
    decoder = codecs.getincrementaldecoder("utf-8")()
    view = memoryview(text)
    start = 0
    pending = 0
    try:
        for start in range(0, len(text), SLICE_BYTES):
            decoder.decode(view[start : start + SLICE_BYTES])
            pending = len(decoder.getstate()[0])
        start = len(text)
        decoder.decode(b"", final=True)
    except UnicodeDecodeError as error:
        return start - pending + error.start
    return None


def has_too_much(text: bytes, most: int) -> bool:
    """Return True if a check would take more steps than `most`: two for each value, key and escape,
    one for each blank.

    The punctuation before values and keys is counted, including punctuation inside strings.
    """
    if 2 * len(text) <= most or 2 * _count(text, _MARKS + _BLANKS) <= most:
        return False
    return 2 * _count(text, _MARKS) + _count(text, _BLANKS) > most


def _count(text: bytes, what: bytes) -> int:
    view = memoryview(text)
    rest = 0
    for start in range(0, len(text), SLICE_BYTES):
        rest += len(bytes(view[start : start + SLICE_BYTES]).translate(None, what))
    return len(text) - rest


def is_value(text: bytes) -> bool:
    """Return True if a worker's text is one JSON value, so that it can be embedded in another JSON
    text.
    """
    if utf8_fault(text) is not None or has_too_much(text, OUTPUT_MAX_STEPS):
        return False
    try:
        _value.decode(text)
    except (msgspec.MsgspecError, RecursionError):
        return False
    return True


@cache
def _large_text_lock() -> Lock:
    """Return the lock for checks of large texts. The event loop runs between two checks; it would
    wait for parallel ones.
    """
    return Lock()


def _one_at_a_time(lock: Lock, work: Callable[[bytes], Found], text: bytes) -> Found:
    with lock:
        return work(text)
