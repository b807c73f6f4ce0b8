"""Validation of JSON without decoding: constant memory, and the same verdict as a parser."""

import json
import tracemalloc

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.service.json_text import BODY_MAX_STEPS, SLICE_BYTES, has_too_much, is_value, utf8_fault

MB = 1024 * 1024
VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)


@given(st.integers(-4, 4), st.binary(max_size=8), st.text(max_size=8))
def test_invalid_utf8_is_located_also_at_slice_boundaries(
    offset: int, tail: bytes, text: str
) -> None:
    whole = b"a" * (SLICE_BYTES + offset) + text.encode() + tail
    fault = None
    try:
        whole.decode()
    except UnicodeDecodeError as error:
        fault = error.start
    assert utf8_fault(whole) == fault


@given(VALUES)
def test_encoded_values_are_valid(value: object) -> None:
    assert is_value(json.dumps(value).encode())
    assert is_value(json.dumps(value, ensure_ascii=False).encode("utf-8", "replace"))


@given(VALUES, st.data())
def test_what_a_parser_rejects_is_invalid(value: object, data: st.DataObject) -> None:
    text = bytearray(json.dumps(value).encode())
    for _ in range(data.draw(st.integers(0, 3))):
        text[data.draw(st.integers(0, len(text) - 1))] = data.draw(st.integers(0, 255))
    try:
        json.loads(text.decode(), parse_constant=int)
    except ValueError:
        assert not is_value(bytes(text))


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b" ",
        b"1 2",
        b'1,"x":2',
        b"}",
        b"NaN",
        b"-Infinity",
        b"01",
        b"\xef\xbb\xbf1",
        b'"\xff"',
        b"[1]]",
        b"'a'",
    ],
)
def test_text_that_would_break_an_enclosing_text_is_invalid(text: bytes) -> None:
    assert not is_value(text)


@pytest.mark.parametrize(
    "unit",
    [b"[],", b"[[[[]]]],", b"0,", b'{"k":1},', b'"",', "\U0001f600".encode()],
    ids=["lists", "nested", "numbers", "objects", "strings", "wide characters"],
)
def test_validation_needs_constant_memory(unit: bytes) -> None:
    quote = b'"' if unit[0] > 127 else b""
    text = b"[" + quote + unit * (8 * MB // len(unit)) + quote.ljust(1, b"1") + b"]"
    tracemalloc.start()
    try:
        assert utf8_fault(text) is None
        is_value(text)
        assert tracemalloc.get_traced_memory()[1] < MB
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize(
    "unit", [b"[]", b"{}", b"0,", b'"":', b"\\n", b"\\u00e9", b"  ", b"\t\n", b" \r"]
)
def test_text_that_would_block_the_event_loop_is_rejected(unit: bytes) -> None:
    most = BODY_MAX_STEPS // 2 * unit
    assert not has_too_much(most, BODY_MAX_STEPS)
    assert has_too_much(most + unit, BODY_MAX_STEPS)


@pytest.mark.parametrize(
    "text",
    [
        b"a" * 20 * MB,
        "\u00e9\U0001f600".encode() * 3 * MB,
        b"0.1234567," * 2 * MB,
        b"words as they stand. " * MB,
    ],
    ids=["base64", "wide characters", "embeddings", "prose"],
)
def test_large_usual_bodies_are_accepted(text: bytes) -> None:
    assert len(text) >= 18 * MB
    assert not has_too_much(text, BODY_MAX_STEPS)
