"""Parsers for numbers in queries and headers: plain decimal digits only.

Python's `int` and `float` accept more than any client intends: spaces, signs, underscores, digits
of other scripts, `nan` and `inf`. They raise an exception for very long numbers.
"""

import re

# Larger than every bound that is checked; longer numbers are replaced by it.
MAX_INTEGER = 10**18

_SECONDS = re.compile(rb"[0-9]{1,15}(?:\.[0-9]{0,20})?(?:[eE][+-]?[0-9]{1,3})?")


def read_whole(text: str) -> int | None:
    """Return a non-negative integer, limited to `MAX_INTEGER`; None if the text is not one."""
    if not text.isascii() or not text.isdigit():
        return None
    digits = text.lstrip("0")
    if len(digits) >= len(str(MAX_INTEGER)):
        return MAX_INTEGER
    return int(digits or "0")


def read_floor(text: str) -> int | None:
    """Return the integer part of a decimal number, limited to `MAX_INTEGER`.

    Returns None if the text is not a decimal number.
    """
    whole, _, fraction = text.partition(".")
    if read_whole(fraction or "0") is None:
        return None
    return read_whole(whole)


def read_seconds(value: bytes, maximum: float) -> float | None:
    """Return the seconds in a header, in the notation of Python's or JavaScript's floats.

    Returns None if the value is not a number, or not above 0 and at most `maximum`.
    """
    if not _SECONDS.fullmatch(value):
        return None
    seconds = float(value)
    return seconds if 0 < seconds <= maximum else None
