"""Untrusted text is displayed without an effect on the terminal."""

import sys
import unicodedata

import pytest

from proxy.wire.escaping import NEWLINE_AND_TAB, escape_controls, shorten

ATTACKS = {
    "clipboard": ("\x1b]52;c;cm0gLXJmIH4=\x07", r"\x1b]52;c;cm0gLXJmIH4=\x07"),
    "title": ("\x1b]0;owned\x1b\\", "\\x1b]0;owned\\x1b\\"),
    "clear screen": ("\x1b[2J\x1b[H", r"\x1b[2J\x1b[H"),
    "C1": ("\x9b2J\x9d0;x\x9c", r"\x9b2J\x9d0;x\x9c"),
    "overwrite": ("safe\rrm -rf", r"safe\rrm -rf"),
    "erase": ("a\x08\x7f\x00", r"a\x08\x7f\x00"),
    "log line": ("a\nlevel=info\u2028b\u2029\x85c", r"a\nlevel=info\u2028b\u2029\x85c"),
    "trojan source": ("\u202e\u2066 \u2069\u200f\u061c", r"\u202e\u2066 \u2069\u200f\u061c"),
    "half a character": ("\ud83d", r"\ud83d"),
}


@pytest.mark.parametrize("attack", ATTACKS)
def test_control_characters_become_visible_escapes(attack: str) -> None:
    text, shown = ATTACKS[attack]
    assert escape_controls(text) == shown


@pytest.mark.parametrize("attack", ATTACKS)
def test_the_result_does_not_depend_on_the_division_of_a_stream(attack: str) -> None:
    text, _ = ATTACKS[attack]
    for place in range(len(text) + 1):
        pieces = (text[:place], text[place:])
        assert "".join(map(escape_controls, pieces)) == escape_controls(text)


def test_all_control_and_bidirectional_characters_are_escaped() -> None:
    every = "".join(map(chr, range(sys.maxunicode + 1)))
    shown = escape_controls(every)
    assert not [one for one in shown if unicodedata.category(one) in {"Cc", "Cs", "Zl", "Zp"}]
    bidirectional = {"LRE", "RLE", "PDF", "LRO", "RLO", "LRI", "RLI", "FSI", "PDI"}
    assert not [one for one in shown if unicodedata.bidirectional(one) in bidirectional]
    shown.encode()


def test_ordinary_text_is_unchanged() -> None:
    # The family of emoji is joined by U+200D.
    text = "Grüße, 世界 👩‍👩‍👧 שלום \\x1b [bold]"
    assert escape_controls(text) == text


def test_characters_to_keep_are_unchanged() -> None:
    assert escape_controls("a\tb\nc\r\n\x1b", keep=NEWLINE_AND_TAB) == "a\tb\nc\\r\n\\x1b"


def test_a_shortened_text_ends_in_an_ellipsis() -> None:
    assert shorten("x" * 200, 200) == "x" * 200
    assert shorten("x" * 201, 200) == "x" * 199 + "…"
