"""Numbers in queries and headers: plain decimal digits. Python's `int` and `float` accept more than any client means.

Those take spaces, signs, underscores, digits of other scripts, `nan` and `inf`, and raise on very long ones.
"""

import re

LARGEST = 10**18  # above every bound here; a longer number is as good as this one

_SECONDS = re.compile(rb"[0-9]{1,15}(?:\.[0-9]{0,20})?(?:[eE][+-]?[0-9]{1,3})?")


def read_whole(text: str) -> int | None:
    """Return a whole number, `LARGEST` at most; None if the text is not one."""
    if not text.isascii() or not text.isdigit():
        return None
    digits = text.lstrip("0")
    return LARGEST if len(digits) >= len(str(LARGEST)) else int(digits or "0")


def read_floor(text: str) -> int | None:
    """Return the whole part of a number that may have a fraction, `LARGEST` at most; None if the text is not one."""
    whole, _, fraction = text.partition(".")
    return None if read_whole(fraction or "0") is None else read_whole(whole)


def read_seconds(value: bytes, most: float) -> float | None:
    """Return a positive number of seconds from a header, written as Python or JavaScript do; None if it is not one."""
    if not _SECONDS.fullmatch(value):
        return None
    seconds = float(value)
    return seconds if 0 < seconds <= most else None
