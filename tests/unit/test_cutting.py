"""Any stream leaves in whole events, and large events in pieces."""

import itertools
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.wire.sse import EVENT_MAX_BYTES, Events, Part

LIMIT = 8
# Two line ends in a row, of any kind.
BLANK_LINE = rb"(?:\r\n?+|\n)(?:\r\n?+|\n)"
STREAMS = st.lists(
    st.sampled_from([b"a", b"bcd", b"\n", b"\r", b"\r\n", b"\n\n", b"\r\n\r\n", b"x" * 11]),
    max_size=12,
)


def cut(*pieces: bytes, limit: int = EVENT_MAX_BYTES) -> list[Part]:
    events = Events(limit)
    return [*itertools.chain.from_iterable(events.feed(piece) for piece in pieces), *events.end()]


@pytest.mark.parametrize(
    ("pieces", "parts"),
    [
        ((), []),
        ((b"data: 1",), [b"data: 1"]),
        ((b"data: 1\n\n",), [b"data: 1\n\n"]),
        ((b"data: 1\n", b"\ndata: 2\n\nda", b"ta: 3"), [b"data: 1\n\ndata: 2\n\n", b"data: 3"]),
        ((b"data: 1\r\n\r", b"\ndata: 2\r\r"), [b"data: 1\r\n\r\ndata: 2\r\r"]),
        (
            (b"data: 1\r\r", b"data: 2\r", b"\rdata: 3"),
            [b"data: 1\r\r", b"data: 2\r\r", b"data: 3"],
        ),
        ((b"data: 1\n\rdata: 2\r\r\ndata: 3",), [b"data: 1\n\rdata: 2\r\r\n", b"data: 3"]),
        ((b"data: 1\n\r", b"data: 2\r\n\n"), [b"data: 1\n\rdata: 2\r\n\n"]),
        ((b"data: 1\r\n",), [b"data: 1\r\n"]),
    ],
)
def test_pieces_become_whole_events(pieces: tuple[bytes, ...], parts: list[bytes]) -> None:
    assert cut(*pieces) == [Part(part, begins=True) for part in parts]


def test_a_large_event_is_split_and_its_end_is_found() -> None:
    stream = b"a\n\n" + b"b" * 20 + b"\n\nc\n\n"
    parts = [
        Part(b"a\n\n", begins=True),
        Part(b"b" * 8, more=True, begins=True),
        Part(b"b" * 8, more=True),
        Part(b"bbbb\n\n"),
        Part(b"c\n\n", begins=True),
    ]
    assert cut(stream, limit=LIMIT) == parts


def test_a_blank_line_is_found_where_two_pieces_of_a_large_event_meet() -> None:
    parts = cut(b"b" * 20 + b"\r\n", b"\r", b"\nc", limit=LIMIT)
    assert [part.data for part in parts[-2:]] == [b"\r\n\r\n", b"c"]
    assert [part.more for part in parts] == [True, True, True, False, False]


def test_a_large_event_without_an_end_has_a_last_part() -> None:
    assert cut(b"b" * 16, limit=LIMIT)[-1] == Part(b"")


@given(stream=STREAMS, cuts=st.lists(st.integers(0, 60), max_size=8))
def test_every_stream_keeps_its_bytes(stream: list[bytes], cuts: list[int]) -> None:
    body = b"".join(stream)
    places = [0, *sorted(min(place, len(body)) for place in cuts), len(body)]
    parts = cut(*(body[first:last] for first, last in itertools.pairwise(places)), limit=LIMIT)
    assert b"".join(part.data for part in parts) == body
    assert all(len(part.data) <= LIMIT for part in parts)
    assert all(part.more or re.search(BLANK_LINE + rb"\Z", part.data) for part in parts[:-1])
    assert not parts or not parts[-1].more
    assert [part.begins for part in parts] == [True, *(not part.more for part in parts)][
        : len(parts)
    ]
    assert not any(
        re.search(BLANK_LINE, part.data.rstrip(b"\r\n"))
        for part in parts
        if part.more or not part.begins
    )
