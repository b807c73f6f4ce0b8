"""Event streams are read as the WHATWG specifies, however they are divided."""

import itertools
import json

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from proxy.wire.sse import Event, Events, LastEvent, Part, carries_error, read_events

ERROR = json.dumps({"error": {"message": "engine failed", "code": 500}}).encode()
TOKEN = b'{"id": "1", "choices": [{"delta": {"content": "an \\"error\\": failed [DONE]"}}]}'
LINES = st.sampled_from(
    [
        b"",
        b"",
        b"data: 1",
        b"data:2",
        b"data:  3",
        b"data",
        b"data: " + ERROR,
        b"data:" + TOKEN,
        b"data: [DONE]",
        b"event: error",
        b"event:response.completed",
        b"event: response.in_progress",
        b"event",
        b": error",
        b"id: 5",
        b"retry: 1",
        b"database: 1",
    ]
)
STREAMS = st.lists(st.tuples(LINES, st.sampled_from([b"\n", b"\r", b"\r\n"])), max_size=14)
CUTS = st.lists(st.integers(0, 300), max_size=6)


def reference(stream: bytes) -> list[Event]:
    """Interpret a stream line by line and byte by byte, in the words of the specification."""
    events, line, kind, data = [], b"", b"", b""
    previous = b""
    for byte in (stream[at : at + 1] for at in range(len(stream))):
        is_rest_of_crlf = byte == b"\n" and previous == b"\r"
        previous = byte
        if byte not in (b"\n", b"\r"):
            line += byte
        elif is_rest_of_crlf:
            continue
        elif not line:
            if data:
                events.append(Event(kind, data.removesuffix(b"\n")))
            kind, data = b"", b""
        else:
            name, value = line.split(b":", 1) if b":" in line else (line, b"")
            value = value.removeprefix(b" ")
            if name == b"event":
                kind = value
            elif name == b"data":
                data += value + b"\n"
            line = b""
    return events


def joined(stream: list[tuple[bytes, bytes]]) -> bytes:
    """Return a stream whose last event is complete."""
    return b"".join(line + end for line, end in stream) + b"\n\n"


def divided(data: bytes, cuts: list[int]) -> list[bytes]:
    places = [0, *sorted(min(place, len(data)) for place in cuts), len(data)]
    return [data[first:last] for first, last in itertools.pairwise(places)]


@given(stream=STREAMS, cuts=CUTS)
@example(stream=[(b"data: 1", b"\r"), (b"", b"\r\n"), (b"data: [DONE]", b"\n")], cuts=[9])
def test_events_do_not_depend_on_line_ends_and_pieces(
    stream: list[tuple[bytes, bytes]], cuts: list[int]
) -> None:
    data = joined(stream)
    expected = reference(data)
    events = Events()
    pieces = divided(data, cuts)
    parts = [*itertools.chain.from_iterable(map(events.feed, pieces)), *events.end()]

    assert list(read_events(data)) == expected
    assert b"".join(part.data for part in parts) == data
    assert [event for part in parts for event in read_events(part.data)] == expected
    assert any(map(carries_error, parts)) is any(event.is_error for event in expected)


@given(stream=STREAMS, cuts=CUTS)
@example(stream=[(b"data: [DONE]", b"\n"), (b"", b"\n"), (b": error", b"\n")], cuts=[])
@example(stream=[(b"data: [DONE]", b"\n"), (b"", b"\n"), (b"event: ping", b"\n")], cuts=[])
@example(stream=[(b"event: ping", b"\n"), (b"data: 1", b"\n"), (b"event: error", b"\n")], cuts=[])
def test_the_last_event_decides_in_every_write(
    stream: list[tuple[bytes, bytes]], cuts: list[int]
) -> None:
    """A comment is not an event, so that it does not revert the end of an answer."""
    events, last = Events(), LastEvent()
    for piece in divided(joined(stream), cuts):
        for part in events.feed(piece):
            last.feed(part.data, more=part.more)
    for part in events.end():
        last.feed(part.data, more=part.more)
    found = reference(joined(stream))
    assert last.has_come is (bool(found) and found[-1].is_final)


@pytest.mark.parametrize(
    ("event", "is_error", "is_final"),
    [
        (Event(b"", b"[DONE]"), False, True),
        (Event(b"", ERROR), True, True),
        (Event(b"", b'{"id": "1", "choices": [], "error": {"code": 502}}'), True, True),
        (Event(b"", b'{"error": "text"}'), True, True),
        (Event(b"", b'{"error": null, "choices": []}'), False, False),
        (Event(b"", b'{"response": {"error": {"code": "x"}}}'), False, False),
        (Event(b"", TOKEN), False, False),
        (Event(b"", b'[{"error": 1}]'), False, False),
        (Event(b"", b"error"), False, False),
        (Event(b"error", b"{}"), True, True),
        (Event(b"response.failed", b"{}"), True, True),
        (Event(b"response.completed", b'{"error": null}'), False, True),
        (Event(b"response.completed_soon", b"{}"), False, False),
        (Event(b"message_stop", b"{}"), False, True),
        (Event(b"ping", b'{"type": "ping"}'), False, False),
    ],
)
def test_the_kind_of_an_event(event: Event, is_error: bool, is_final: bool) -> None:
    assert (event.is_error, event.is_final) == (is_error, is_final)


@pytest.mark.parametrize("space", [b" ", b""])
@pytest.mark.parametrize("end", [b"\n", b"\r", b"\r\n"])
@pytest.mark.parametrize(
    "lines",
    [
        (b"data:%s", b""),
        (b"event:error", b"data:%s", b""),
        (b"data:%s", b"event:error", b""),
        (b"id:5", b"data:%s", b""),
        (b":comment", b"data:%s", b""),
        (b"data:{", b'data:"error"', b"data:: 5}", b""),
    ],
)
def test_every_spelling_of_an_error_event_is_found(
    lines: tuple[bytes, ...], end: bytes, space: bytes
) -> None:
    spelt = [line.replace(b"%s", ERROR).replace(b":", b":" + space, 1) for line in lines]
    error = end.join([*spelt, b""])
    good = b"data: {}" + end + end
    assert carries_error(Part(good + error + good, begins=True))
    assert not carries_error(Part(good + good, begins=True))
    last = LastEvent()
    last.feed(good + error, more=False)
    assert last.has_come


def test_the_beginning_of_a_split_event_is_read() -> None:
    large = b'data: {"error": {"message": "' + b"x" * 300_000
    assert carries_error(Part(large, more=True, begins=True))
    assert not carries_error(Part(large, more=True))
    text = b'data: {"text": "' + b"x" * 300_000 + b'", "error": {}'
    assert not carries_error(Part(text, more=True, begins=True))


def test_a_byte_order_mark_is_skipped() -> None:
    assert list(read_events(b"\xef\xbb\xbfdata: 1\n\n")) == [Event(b"", b"1")]
