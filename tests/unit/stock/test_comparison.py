"""The comparison of the elements that a run has posted with the list in its result."""

import json
from typing import Any

import pytest

from proxy.channel.runpod.comparison import (
    LIST_MAX_COMMAS,
    REPETITION_SECONDS,
    Difference,
    PostedElements,
    digest,
    find_difference,
)


class Line:
    """A connection."""


def posted(*values: Any) -> PostedElements:
    return PostedElements(json.dumps(value).encode() for value in values)


def difference(arrived: str, listed: str) -> Difference | None:
    """Compare elements that are letters."""
    return find_difference(posted(*arrived), json.dumps(list(listed)).encode())


@pytest.mark.parametrize(
    ("arrived", "listed"),
    [("", ""), ("abc", "abc"), ("aa", "aa"), ("ab", ""), ("abc", "ccc"), ("ba", "ab"), ("x", "ab")],
)
def test_nothing_is_corrected(arrived: str, listed: str) -> None:
    assert difference(arrived, listed) is None


@pytest.mark.parametrize(
    ("arrived", "listed", "start", "missing", "is_at_end"),
    [
        ("", "ab", 0, "ab", True),
        ("a", "ab", 1, "b", True),
        ("a", "aab", 1, "ab", True),
        ("b", "ab", 0, "ab", False),
        ("ac", "abc", 1, "bc", False),
        ("aab", "ab", 1, "b", False),
        ("aaab", "ab", 1, "b", False),
        ("abb", "ab", 2, "", False),
        ("aac", "abc", 1, "bc", False),
        ("abba", "abca", 2, "ca", False),
        ("aabb", "abb", 1, "bb", False),
    ],
)
def test_holes_and_repetitions_are_found(
    arrived: str, listed: str, start: int, missing: str, is_at_end: bool
) -> None:
    expected = [json.dumps(letter).encode() for letter in missing]
    assert difference(arrived, listed) == Difference(start, expected, is_at_end)


@pytest.mark.parametrize("output", [b"null", b'{"a":[1]}', b'"[1]"', b"1", b"[]"])
def test_other_outputs_are_not_compared(output: bytes) -> None:
    assert find_difference(posted(1, 2), output) is None


def test_a_list_that_takes_too_much_memory_is_not_compared() -> None:
    listed = b"[%b1]" % (b"1," * LIST_MAX_COMMAS)
    assert find_difference(posted(1), listed) is None


def test_the_digest_of_a_value_does_not_depend_on_its_blanks() -> None:
    assert digest(b'{"a":[1,2]}') == digest(b' { "a" : [ 1,\n2 ] } ')
    assert digest(b'"a b"') != digest(b'"ab"')
    assert digest(b"1") != digest(b"1.0")


def test_a_value_of_any_depth_has_a_digest() -> None:
    assert digest(b"[" * 100_000 + b"]" * 100_000)


def test_a_repetition_follows_a_lost_response_after_a_pause() -> None:
    elements = posted("a")
    line = Line()
    same = digest(b'"a"')
    assert elements.begin(line, same, 0.0)
    elements.closed(Line(), 1.0)
    assert elements.begin(line, same, 10.0)
    elements.closed(line, 10.0)
    assert not elements.begin(line, same, 10.0 + REPETITION_SECONDS)
    # The loss of the same response is used once.
    assert elements.begin(line, same, 20.0)
    elements.closed(line, 20.0)
    assert elements.begin(line, same, 20.1)
    elements.closed(line, 20.1)
    assert elements.begin(line, digest(b'"b"'), 30.0)
    elements.answered(line)
    elements.closed(line, 30.0)
    assert elements.begin(line, same, 40.0)
