"""The final event of a stream is detected however the stream is split into writes."""

import pytest

from proxy.wire.sse import LastEvent

FIRST = b'data: {"a": 1}\n\n'
ENDS = [
    b"data: [DONE]\n\n",
    b"data:[DONE]\r\n\r\n",
    b'event: response.completed\ndata: {"text": "' + b"x" * 1_000 + b'"}\n\n',
    b"event: response.incomplete\r\ndata: {}\r\n\r\n",
    b"event: response.failed\ndata: {}\n\n",
    b"event:message_stop\ndata: {}\n\n",
    b"event: error\ndata: {}\n\n",
    b'data: {"error": {"message": "' + b"x" * 1_000 + b'"}}\n\n',
    b'data: { "error" : "no"}\n\n',
]
OTHERS = [
    b'data: {"text": "data: [DONE]"}\n\n',
    b'data: {"error": null, "a": 1}\n\n',
    b"event: response.completed_soon\ndata: {}\n\n",
    b"event: response.in_progress\ndata: event: error\n\n",
    b"event: content_block_stop\ndata: {}\n\n",
    b"data: event: message_stop\n\n",
    b": data: [DONE]\n\n",
]


def is_final(data: bytes, size: int) -> bool:
    last = LastEvent()
    for start in range(0, len(data), size):
        last.feed(data[start : start + size], more=start + size < len(data))
        assert not last.has_come or start + size >= len(data)
    return last.has_come


@pytest.mark.parametrize("size", [1, 2, 3, 5, 16, 64, 10_000])
@pytest.mark.parametrize(
    ("event", "is_last"), [(one, True) for one in ENDS] + [(one, False) for one in OTHERS]
)
def test_the_beginning_of_an_event_determines_its_kind(
    event: bytes, is_last: bool, size: int
) -> None:
    assert is_final(event, size) is is_last
    assert is_final(FIRST + event, size) is is_last
    assert is_final(FIRST.replace(b"\n", b"\r\n") + event, size) is is_last
    assert is_final(event + FIRST, size) is False
    assert is_final(FIRST + event.rstrip(), size) is is_last


def test_each_write_is_judged_separately() -> None:
    last = LastEvent()
    for data, is_last in (
        (FIRST, False),
        (ENDS[0], True),
        (FIRST, False),
        (FIRST + ENDS[2], True),
        (ENDS[0], True),
    ):
        last.feed(data, more=False)
        assert last.has_come is is_last
