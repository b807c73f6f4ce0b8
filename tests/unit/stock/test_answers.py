"""The conversion of worker-vllm output into the response of its engine."""

import json
import tracemalloc
from collections.abc import Callable
from contextlib import suppress

import pytest

from proxy.channel.runpod.openai import (
    DONE,
    Answer,
    TooManyElementsError,
    elements,
    error_text,
    find_failure,
    read_failure,
    read_result,
)
from proxy.service.mailbox import EVENT_MAX_BYTES

STREAM, WHOLE = b'{"stream": true}', b'{"stream": false}'


def text(value: str) -> bytes:
    return json.dumps(value, ensure_ascii=False).encode()


@pytest.mark.parametrize("size", [1, 2, 3, 7, 1000])
def test_a_stream_that_is_split_anywhere_is_passed_on_in_whole_events(size: int) -> None:
    whole = "".join(
        f"data: é🙂 {number}\r\n\r\n" if number % 3 else f"data: {number}\n\n"
        for number in range(9)
    )
    answer = Answer(STREAM)
    pieces = [answer.put(text(whole[start : start + size])) for start in range(0, len(whole), size)]
    assert all(piece.endswith((b"\n\n", b"\r\n\r\n")) for piece in pieces if piece)
    assert b"".join(pieces) + answer.finish(b"[]") == whole.encode()


def test_the_end_of_a_stream_is_an_event_even_without_its_blank_line() -> None:
    answer = Answer(STREAM)
    assert answer.put(text("data: 1\n")) == b""
    assert answer.finish(b"[]") == b"data: 1\n\n\n"


@pytest.mark.parametrize("size", [1_000, 65_536, 300_000, 2_000_000])
@pytest.mark.parametrize("blank", ["\n\n", "\r\n\r\n"])
def test_a_large_event_is_passed_on_in_pieces_with_a_small_buffer(blank: str, size: int) -> None:
    whole = (
        f"data: 1{blank}data: {'é' * 500_000}{blank}"
        f"data: 2{blank}data: {'x' * EVENT_MAX_BYTES}{blank}"
    )
    answer, left = Answer(STREAM), b""
    for start in range(0, len(whole), size):
        left += answer.put(text(whole[start : start + size]))
        assert answer.is_mid_event != left.endswith(blank.encode())
        assert answer.backlog <= EVENT_MAX_BYTES
    assert left + answer.finish(b"[]") == whole.encode()


def test_a_large_event_without_its_blank_line_is_ended() -> None:
    answer = Answer(STREAM)
    data = "data: " + "x" * 2 * EVENT_MAX_BYTES
    assert answer.put(text(data)) + answer.finish(b"[]") == data.encode() + b"\n\n"
    assert not answer.is_mid_event


ERRORS = [
    'data: {"error": {"message": "no"}}',
    "event: error\ndata: {}",
    "event: response.failed\ndata: {}",
    'data: {"error": {"message": "' + "x" * 2 * EVENT_MAX_BYTES + '"}}',
]
NO_ERRORS = [
    'data: {"text": "data: {\\"error\\""}',
    "data: x" * EVENT_MAX_BYTES + 'data: {"error"',
    "event: response.completed",
]


@pytest.mark.parametrize("size", [7, 70_000, 10_000_000])
@pytest.mark.parametrize(
    ("event", "is_one"), [(one, True) for one in ERRORS] + [(one, False) for one in NO_ERRORS]
)
def test_an_error_event_is_detected_wherever_it_is_split(
    event: str, is_one: bool, size: int
) -> None:
    whole = f"data: 1\n\n{event}\n\ndata: [DONE]\n\n"
    answer = Answer(STREAM)
    if size == 7 and len(whole) > EVENT_MAX_BYTES:
        size = EVENT_MAX_BYTES + 7
    for start in range(0, len(whole), size):
        answer.put(text(whole[start : start + size]))
    answer.finish(b"[]")
    assert answer.carries_error is is_one


def test_parsed_events_are_serialized_and_terminated() -> None:
    answer = Answer(STREAM)
    assert answer.put(b'[{"a":1},{"b":2}]') == b'data: {"a":1}\n\ndata: {"b":2}\n\n'
    assert answer.finish(b"[]") == DONE


def test_a_stream_may_arrive_only_as_a_result() -> None:
    assert Answer(STREAM).finish(b'["data: 1\\n\\n", "data: 2\\n\\n"]') == b"data: 1\n\ndata: 2\n\n"


@pytest.mark.parametrize(
    "end", ["data: [DONE]\n\n", "data:[DONE]\r\n\r\n", "event: message_stop\ndata: {}\n\n"]
)
@pytest.mark.parametrize("start", ["", "data: {}\n\n"])
def test_the_end_of_a_stream_waits_for_the_result(start: str, end: str) -> None:
    answer = Answer(STREAM)
    assert answer.put(text("data: 1\n\n")) == b"data: 1\n\n"
    assert answer.put(text(start + end)) == start.encode()
    assert answer.backlog == len(end)
    assert answer.finish(b"[]") == end.encode()


def test_what_follows_the_end_waits_for_the_result_too() -> None:
    """The worker has posted an element again."""
    answer = Answer(STREAM)
    whole = "data: 1\n\ndata: [DONE]\n\n"
    assert answer.put(text(whole)) == b"data: 1\n\n"
    assert answer.put(text(whole)) == b""
    assert answer.put(text("data: 2")) == b""
    assert not answer.is_mid_event
    assert answer.finish(b"[]") == (whole * 2).removeprefix("data: 1\n\n").encode() + b"data: 2\n\n"


def test_an_end_without_its_blank_line_is_ended() -> None:
    answer = Answer(STREAM)
    answer.put(text("data: [DONE]\n"))
    assert answer.finish(b"[]") == b"data: [DONE]\n\n\n"


def test_missing_parts_of_a_stream_are_detected() -> None:
    answer = Answer(STREAM)
    answer.put(b'"data: 1"')
    assert answer.has_holes(b"[1,2]")
    assert not answer.has_holes(b"[1]")
    assert not answer.has_holes(b"[]")


WHOLES = [
    (b'[{"id": 1.0}]', 200, b'{"id": 1.0}'),
    (b'{"id": 1}', 200, b'{"id": 1}'),
    (b'["{\\"id\\": 1}"]', 200, b'{"id": 1}'),
    (b'["some ", "text"]', 200, b"some text"),
    (b"[1, 2]", 200, b"[1, 2]"),
    (
        b'[{"object": "error", "message": "m", "code": 404}]',
        404,
        b'{"error":{"message":"m","code":404}}',
    ),
]


@pytest.mark.parametrize(("output", "status", "body"), WHOLES)
def test_a_whole_answer_is_unwrapped(output: bytes, status: int, body: bytes) -> None:
    found = Answer(WHOLE).whole(output)
    assert found is not None
    assert (found[0].status, found[1]) == (status, body)


@pytest.mark.parametrize("output", [b"[]", b"null", b"[null]"])
def test_invalid_output_is_not_an_answer(output: bytes) -> None:
    assert Answer(WHOLE).whole(output) is None


def test_a_whole_answer_may_arrive_only_as_a_chunk() -> None:
    answer = Answer(WHOLE)
    assert answer.put(b'{"id": 1}') == b""
    assert answer.whole(b"[]") is not None


INNER = '{"error": {"message": "it\'s", "code": 400}}'
FAILURES = [
    (
        repr({"message": f"vLLM returned HTTP 400: {INNER}", "type": "worker_error", "code": None}),
        400,
        INNER,
    ),
    ({"message": f"vLLM returned HTTP 422: {INNER}"}, 422, INNER),
    ({"message": "vLLM returned HTTP 503: busy"}, 503, None),
    (repr({"message": "m", "type": "t", "param": None, "code": 404}), 404, None),
    ({"error": {"message": "m", "code": 400}}, 400, None),
    ("handler: out of luck \ntraceback: Traceback…", 0, None),
    (json.dumps({"error_type": "<class 'E'>", "error_message": "out of luck"}), 0, None),
    ("plain", 0, None),
    ("{'not': closed", 0, None),
    ("{" * 100_000, 0, None),
    (["a", 1], 0, None),
    ({"message": "m", "code": 200}, 0, None),
]


@pytest.mark.parametrize(("error", "status", "body"), FAILURES, ids=range(len(FAILURES)))
def test_the_status_of_an_error_is_restored(error: object, status: int, body: str | None) -> None:
    failure = read_failure(error)
    assert failure.status == status
    assert bool(failure.body) is bool(status)
    assert body is None or failure.body.decode() == body


def test_an_exception_is_reported_without_its_traceback() -> None:
    assert read_failure("handler: out of luck \ntraceback: secret").message == "out of luck"
    assert (
        read_failure(json.dumps({"error_message": "out of luck", "error_traceback": "s"})).message
        == "out of luck"
    )


async def test_results_keep_their_bytes_and_python_numbers_are_corrected() -> None:
    result = await read_result(b'{"output": {"x": 1.0,  "y": []}, "stopPod": true}')
    assert result is not None
    assert (result.value, result.has_failed, result.refreshes) == (
        b'{"x": 1.0,  "y": []}',
        False,
        True,
    )
    mended = await read_result(b'{"output": [NaN, Infinity, -Infinity, 1]}')
    assert mended is not None
    assert elements(mended.value) == [b"null", b"null", b"null", b"1"]
    assert [
        await read_result(body) for body in (b"", b"[]", b"<html>", b'{"output"', b"[" * 100_000)
    ] == [None] * 5


async def test_a_text_that_looks_like_a_python_number_stays_a_text() -> None:
    mended = await read_result(
        b'{"output": ["NaN", "\\"-Infinity", NaN, {"NaN": -Infinity}], "error": null}'
    )
    assert mended is not None
    assert mended.value == b'["NaN", "\\"-Infinity", null, {"NaN": null}]'


@pytest.mark.parametrize(
    "body", [b'{"output": "\xff"}', b'{"output": "\\ud800"}', b'{"output": ' + b"[" * 100_000]
)
async def test_a_result_that_cannot_be_passed_on_is_rejected(body: bytes) -> None:
    assert await read_result(body) is None


HOSTILE = [
    (elements, b"[" + b"[]," * 6_000_000 + b"1]"),
    (elements, b"[[" + b"[]," * 6_000_000 + b"1]]"),
    (Answer(WHOLE).whole, b"[[" + b"[]," * 6_000_000 + b"1]]"),
    (Answer(WHOLE).whole, b'[{"object":[' + b"[]," * 6_000_000 + b"1]}]"),
    (Answer(WHOLE).whole, b'[{"object":"error","x":[' + b"[]," * 6_000_000 + b"1]}]"),
    (Answer(WHOLE).whole, b'["' + b"[]," * 6_000_000 + b'1"]'),
    (Answer(STREAM).put, b"[" * 400 + b"1," * 4_000_000 + b"1" + b"]" * 400),
    (Answer(STREAM).put, b"[" + b"[[[[1]]]]," * 1_500_000 + b"1]"),
    (Answer(STREAM).finish, b"[" + b"[]," * 6_000_000 + b"1]"),
    (Answer(STREAM).put, b'{"object":[' + b"[]," * 6_000_000 + b"1]}"),
    (find_failure, b'{"a":[' + b"[]," * 6_000_000 + b"1]}"),
    (find_failure, b'"' + b"{'a':[],}" * 1_000_000 + b'"'),
    (find_failure, b"[" * 100_000),
]


@pytest.mark.parametrize(("take", "value"), HOSTILE, ids=range(len(HOSTILE)))
def test_a_hostile_output_costs_a_few_times_its_bytes(
    take: Callable[[bytes], object], value: bytes
) -> None:
    tracemalloc.start()
    try:
        with suppress(TooManyElementsError):
            take(value)
        assert tracemalloc.get_traced_memory()[1] < 5 * len(value) + 1_000_000
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize(
    ("error", "shown"), [(b'"text"', "text"), (b'{"a": 1}', '{"a": 1}'), (b"[1]", "[1]")]
)
def test_an_error_is_a_string(error: bytes, shown: str) -> None:
    assert error_text(error) == shown


DEEP = ["{" + unit * 10_000 for unit in ("(", "1:{", "-", "a.", "1+", "not ", "lambda:")]


@pytest.mark.parametrize("text", DEEP)
def test_a_deeply_nested_error_is_handled(text: str) -> None:
    """Python's own parser fails with other errors after such a text, regardless of its input."""
    assert read_failure(text).message == text
    assert (
        read_failure(
            repr({"message": 'a "b" \' \n', "code": 404, "x": [None, True, (1.5, {})]})
        ).status
        == 404
    )
