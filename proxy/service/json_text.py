"""JSON of others, which is passed on as the bytes that it is: checked, and never built.

Building it would cost 25 times its bytes. A check costs no memory, but holds Python's lock while it runs, so the event
loop stands still wherever it runs: that is why there is a limit of what may be in a text, and why large texts are
checked one at a time.
"""

import asyncio
import codecs
from collections.abc import Callable
from functools import cache
from threading import Lock
from typing import TypeVar

import msgspec

Found = TypeVar("Found")

IN_THREAD_ABOVE = 256 * 1024  # bytes: a megabyte takes a few milliseconds, and the event loop has other clients
SLICE_BYTES = 64 * 1024
MOST_CONTAINERS = 2_500_000  # lists and objects: they cost most, and with so many, 20 MB are checked within 50 ms

_value = msgspec.json.Decoder(msgspec.Raw)


async def apart(work: Callable[[bytes], Found], text: bytes) -> Found:
    """Do something with a text that takes time by its length: in a thread if it is large."""
    return await asyncio.to_thread(_in_turn, _turn(), work, text) if len(text) > IN_THREAD_ABOVE else work(text)


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


def has_too_much(text: bytes) -> bool:
    """Whether there are more lists and objects in it than may be. Those in strings count too, which nobody notices."""
    if len(text) <= MOST_CONTAINERS:
        return False
    view, found = memoryview(text), 0
    for start in range(0, len(text), SLICE_BYTES):
        part = bytes(view[start : start + SLICE_BYTES])
        found += part.count(b"[") + part.count(b"{")
    return found > MOST_CONTAINERS


def is_value(text: bytes) -> bool:
    """Whether it is one JSON value, so that it may stand in the middle of another JSON text."""
    if utf8_fault(text) is not None or has_too_much(text):
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
