"""JSON of others, which is passed on as the bytes that it is: checked, and never built.

Building it would cost 25 times its bytes. A check costs no memory, but holds Python's lock while it runs, so the event
loop stands still wherever it runs: that is why there is a limit of what there may be to check in a text, and why large
texts are checked one at a time.
"""

import asyncio
import codecs
from collections.abc import Callable
from functools import cache
from threading import Lock
from typing import TypeVar

import msgspec

Found = TypeVar("Found")

IN_THREAD_ABOVE = (
    256 * 1024
)  # bytes: a megabyte takes a few milliseconds, and the event loop has other clients
SLICE_BYTES = 64 * 1024
MOST_STEPS = 6_000_000  # of a client's body; one takes up to 5 ns, and a byte without any 0.4
MOST_OUTPUT_STEPS = (
    20_000_000  # of a worker's output, which is trusted more, and lost if it is refused
)
_MARKS, _BLANKS = b",:[{\\", b" \t\r\n"

_value = msgspec.json.Decoder(msgspec.Raw)


async def in_thread_if_large(work: Callable[[bytes], Found], text: bytes) -> Found:
    """Do something with a text that takes time by its length: in a thread if it is large."""
    return (
        await asyncio.to_thread(_in_turn, _turn(), work, text)
        if len(text) > IN_THREAD_ABOVE
        else work(text)
    )


def utf8_fault(text: bytes) -> int | None:
    """Where a text is not UTF-8; None if all of it is. In slices: a whole one could become four times its bytes."""
    if len(text) <= SLICE_BYTES:
        try:
            text.decode()
        except UnicodeDecodeError as error:
            return error.start
        return None
    decoder, view = codecs.getincrementaldecoder("utf-8")(), memoryview(text)
    start, pending = 0, 0
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
    """Whether a check of it would take more steps than this: two for each value, key and escape, one for each blank.

    The marks that stand before values and keys are counted, and those in strings with them.
    """
    if 2 * len(text) <= most or 2 * _count(text, _MARKS + _BLANKS) <= most:
        return False
    return 2 * _count(text, _MARKS) + _count(text, _BLANKS) > most


def _count(text: bytes, what: bytes) -> int:
    view, rest = memoryview(text), 0
    for start in range(0, len(text), SLICE_BYTES):
        rest += len(bytes(view[start : start + SLICE_BYTES]).translate(None, what))
    return len(text) - rest


def is_value(text: bytes) -> bool:
    """Whether a worker's text is one JSON value, so that it may stand in the middle of another JSON text."""
    if utf8_fault(text) is not None or has_too_much(text, MOST_OUTPUT_STEPS):
        return False
    try:
        _value.decode(text)
    except (msgspec.MsgspecError, RecursionError):
        return False
    return True


@cache
def _turn() -> Lock:
    """Between two checks the event loop has its turn; with several at once it would wait for all of them."""
    return Lock()


def _in_turn(turn: Lock, work: Callable[[bytes], Found], text: bytes) -> Found:
    with turn:
        return work(text)
