"""Escape terminal control characters, and characters that hide text, in untrusted text."""

import re

NEWLINE_AND_TAB = "\n\t"
ELLIPSIS = "…"

# C0, DEL and C1; bidirectional marks, overrides and isolates; line and paragraph separators; lone
# surrogates, which cannot be encoded and would end a `print` with an exception.
_UNSAFE = re.compile(
    "[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]"
)
LAST_BYTE = 0xFF
_SHORT = {"\n": r"\n", "\r": r"\r", "\t": r"\t"}


def escape_controls(text: str, keep: str = "") -> str:
    r"""Return `text` with control and bidirectional characters as visible escapes, such as `\x1b`.

    Every character is escaped independently, so a stream may be divided at any point.

    Args:
        text: any text.
        keep: characters to pass through, such as `NEWLINE_AND_TAB` for text with several lines.

    """
    return _UNSAFE.sub(lambda found: found[0] if found[0] in keep else _escape(found[0]), text)


def shorten(text: str, characters: int) -> str:
    """Return at most `characters` of `text`; a shortened text ends in an ellipsis."""
    return text if len(text) <= characters else text[: characters - 1] + ELLIPSIS


def _escape(character: str) -> str:
    code = ord(character)
    if character in _SHORT:
        return _SHORT[character]
    return f"\\x{code:02x}" if code <= LAST_BYTE else f"\\u{code:04x}"
