"""The proxy's own events in a stream, as a function of the engine's events before them."""

import json
from typing import Any

import pytest
from harness.data import responses
from openai.types.responses import ResponseCreatedEvent, ResponseErrorEvent, ResponseFailedEvent

from proxy.api.openai.stream_events import (
    ChatEvents,
    ChunkEvents,
    HeartbeatForm,
    ResponsesEvents,
    StreamedCall,
)
from proxy.wire.sse import read_events

CALL = StreamedCall("req_1", "small", 7)
TOO_LONG = "This model's maximum context length is 4096 tokens. However, you requested 5000."


def error(message: str, code: object = "gave_up") -> bytes:
    return json.dumps(
        {"error": {"message": message, "type": "t", "param": None, "code": code}}
    ).encode()


def failure(*written: bytes, body: bytes, is_final: bool) -> list[dict[str, Any]]:
    """Return the data of the last events after these writes."""
    events = ResponsesEvents(HeartbeatForm.AUTO, CALL)
    for data in written:
        events.note(data)
    found = list(read_events(events.failure(body, is_final=is_final)))
    decoded = [json.loads(event.data) for event in found]
    assert [event.type.decode() for event in found] == [one["type"] for one in decoded]
    return decoded


def test_a_response_that_has_not_begun_begins_and_fails() -> None:
    """The events have all fields that OpenAI's own types require."""
    created, problem, failed = failure(body=error("lost"), is_final=True)
    one = ResponseCreatedEvent.model_validate(created)
    two = ResponseErrorEvent.model_validate(problem)
    three = ResponseFailedEvent.model_validate(failed)
    assert (one.response.id, one.response.status, one.response.error) == (
        "resp_1",
        "in_progress",
        None,
    )
    assert (two.code, two.message) == ("gave_up", "lost")
    assert three.response.error is not None
    assert (three.response.error.code, three.response.error.message) == ("invalid_prompt", "lost")
    assert (three.response.id, three.response.status) == ("resp_1", "failed")
    assert (three.response.model, three.response.created_at) == ("small", 7)
    assert [one.sequence_number, two.sequence_number, three.sequence_number] == [0, 1, 2]


def test_a_response_that_has_begun_keeps_its_identity() -> None:
    written = [responses.beginning(), responses.tokens("hi")]
    problem, failed = failure(*written, body=error("lost"), is_final=True)
    assert (problem["type"], problem["sequence_number"]) == ("error", 5)
    assert (failed["type"], failed["sequence_number"]) == ("response.failed", 6)
    assert failed["response"]["id"] == responses.ID
    assert failed["response"]["created_at"] == 1_700_000_000


@pytest.mark.parametrize(
    ("body", "is_final", "reason"),
    [
        (error("lost"), True, "invalid_prompt"),
        (error("no worker", "no_workers"), False, "server_error"),
        (error(TOO_LONG, 400), True, "context_length_exceeded"),
        (error(TOO_LONG, 400), False, "context_length_exceeded"),
        (error("x", "context_length_exceeded"), True, "context_length_exceeded"),
        (error("the request exceeds the available context size"), True, "context_length_exceeded"),
        (b'{"detail": "Not Found"}', True, "invalid_prompt"),
        (b"<html>", False, "server_error"),
        (b"x" * 100_000, False, "server_error"),
    ],
)
def test_the_reason_tells_clients_if_they_may_repeat_the_call(
    body: bytes, is_final: bool, reason: str
) -> None:
    *_, problem, failed = failure(responses.beginning(), body=body, is_final=is_final)
    assert failed["response"]["error"]["code"] == reason
    assert failed["response"]["error"]["message"] == problem["message"] != ""
    assert problem["code"] is None or isinstance(problem["code"], str)


@pytest.mark.parametrize(
    ("kind", "is_final", "shown", "message"),
    [
        ("server_error", True, "invalid_request_error", "lost. (invalid_request_error)"),
        ("server_error", False, "server_error", "lost."),
        ("InternalServerError", True, "InternalServerError", "lost."),
    ],
)
def test_the_type_of_a_final_error_in_chat_is_not_that_of_a_repeated_call(
    kind: str, is_final: bool, shown: str, message: str
) -> None:
    given = {"message": "lost.", "type": kind, "param": None, "code": "worker_lost"}
    body = json.dumps({"error": given}).encode()
    event, done, _ = ChatEvents().failure(body, is_final=is_final).split(b"\n\n")
    assert done == b"data: [DONE]"
    assert json.loads(event.removeprefix(b"data: ")) == {
        "error": given | {"type": shown, "message": message}
    }


def test_the_identity_is_found_in_a_beginning_that_is_sent_in_parts() -> None:
    part = (
        b'event: response.created\ndata: {"response": {"id": "resp_9", "instructions": "' + b"x" * 9
    )
    _, failed = failure(part, b'x"}, "sequence_number": 4}\n\n', body=error("lost"), is_final=True)
    assert failed["response"]["id"] == "resp_9"
    assert failed["sequence_number"] == 6


@pytest.mark.parametrize("comment", [b": ping\n\n", b": ping\r\n\r\n", b":\n: x\n\n"])
def test_a_comment_of_the_engine_does_not_begin_a_response(comment: bytes) -> None:
    created, problem, failed = failure(comment, body=error("lost"), is_final=True)
    assert created["type"] == "response.created"
    assert (problem["sequence_number"], failed["sequence_number"]) == (1, 2)
    events = ResponsesEvents(HeartbeatForm.AUTO, CALL)
    events.note(comment)
    assert events.heartbeat("running") == b": running\n"


def test_a_comment_of_the_engine_does_not_hide_the_number_before_it() -> None:
    written = [responses.beginning(), responses.tokens("hi"), b": ping\n\n"]
    problem, _ = failure(*written, body=error("lost"), is_final=True)
    assert problem["sequence_number"] == 5


def test_text_about_numbers_is_not_a_number() -> None:
    text = responses.tokens('"sequence_number": 99')
    problem, _ = failure(responses.beginning(), text, body=error("lost"), is_final=True)
    assert problem["sequence_number"] == 5


def test_the_events_before_a_large_write_do_not_matter() -> None:
    large = responses.tokens("x" * 10_000)
    problem, _ = failure(responses.beginning(), large, body=error("lost"), is_final=True)
    assert problem["sequence_number"] == 5


@pytest.mark.parametrize("size", [1, 200])
def test_a_chunk_without_text_follows_the_last_event_of_any_write(size: int) -> None:
    choice = {"index": 1, "delta": {"content": "x" * 100}, "finish_reason": None}
    fields = {"id": "a", "object": "chat.completion.chunk", "created": 1, "model": "m"}
    event = b"data: %b\n\n" % json.dumps(fields | {"choices": [choice]}).encode()
    events = ChunkEvents()
    assert events.heartbeat("running") == b": running\n"
    events.note(event * size)
    empty = {"index": 1, "delta": {}, "logprobs": None, "finish_reason": None}
    assert json.loads(events.heartbeat("running")[6:]) == fields | {"choices": [empty]}
