"""The forms of a job's `input`, and the requests to the engine that they stand for."""

import json
from typing import Any

import pytest

from worker_vllm.asgi import Request
from worker_vllm.inputs.reading import CHAT, COMPLETIONS, BadInputError, Call, Native, read_input

MESSAGES = [{"role": "user", "content": "hi"}]
USAGE = {"include_usage": True, "continuous_usage_stats": True}


def read(value: Any, known: frozenset[str] = frozenset()) -> Call:
    """Return the call of an input, for an engine whose routes have the fields `known`."""
    raw = value if isinstance(value, bytes) else json.dumps(value).encode()
    return read_input(raw, "demo", lambda _: known)


def body(value: Any, known: frozenset[str] = frozenset()) -> dict[str, Any]:
    """Return the decoded body of the request of an input."""
    found: dict[str, Any] = json.loads(read(value, known).request.body)
    return found


PASSED_ON = [
    (b'{"openai_route": "/v1/completions", "openai_input": {"a":  1.0}}', "POST",
     "/v1/completions", b'{"a":  1.0}'),
    (b'{"openai_route": "/openai/v1/models"}', "GET", "/v1/models", b""),
    (b'{"openai_route": "/v1/models", "openai_input": {}}', "GET", "/v1/models", b""),
    (b'{"openai_route": "/v1/models", "openai_input": null}', "GET", "/v1/models", b""),
    (b'{"openai_input": {"messages": []}}', "POST", CHAT, b'{"messages": []}'),
    (b'{"route": "/rerank", "body": {"q": "\\u00e9"}}', "POST", "/rerank", b'{"q": "\\u00e9"}'),
    (b'{"route": "/v1/models"}', "GET", "/v1/models", b""),
    (b'{"route": "/v1/responses/x/cancel", "method": "post"}', "POST", "/v1/responses/x/cancel",
     b""),
    (b'{"route": "/tokenize", "body": {"n": 123456789012345678901234567890}}', "POST", "/tokenize",
     b'{"n": 123456789012345678901234567890}'),
]  # fmt: skip


@pytest.mark.parametrize(("raw", "method", "path", "sent"), PASSED_ON)
def test_a_named_route_gets_the_bytes_of_the_body(
    raw: bytes, method: str, path: str, sent: bytes
) -> None:
    content_type = "application/json" if sent else ""
    assert read(raw) == Call(Request(method, path, content_type, sent))


def test_a_prompt_is_a_completion() -> None:
    call = read(
        {"prompt": "hi", "sampling_params": {"temperature": 0, "stop": None}, "batch_size": 3}
    )
    assert call.request.path == COMPLETIONS
    assert call.native == Native(is_stream=False, choices=1)
    assert json.loads(call.request.body) == {
        "model": "demo",
        "max_tokens": 100,
        "prompt": "hi",
        "temperature": 0,
    }


def test_messages_are_a_chat() -> None:
    call = read(
        {
            "messages": MESSAGES,
            "model": "pirate",
            "stream": True,
            "sampling_params": {"n": 3, "max_tokens": 5},
        }
    )
    assert call.request.path == CHAT
    assert call.native == Native(is_stream=True, choices=3)
    wanted = {
        "model": "pirate",
        "messages": MESSAGES,
        "n": 3,
        "max_tokens": 5,
        "stream": True,
        "stream_options": USAGE,
    }
    assert json.loads(call.request.body) == wanted


def test_a_prompt_can_be_put_into_the_chat_template() -> None:
    assert body({"prompt": "hi", "apply_chat_template": True})["messages"] == MESSAGES


def test_sampling_params_by_their_names_in_vllm() -> None:
    params = {"logprobs": 2, "extra_args": {"x": 1}}
    found = body(
        {"messages": MESSAGES, "sampling_params": params},
        frozenset({"logprobs", "top_logprobs", "n"}),
    )
    assert (found["logprobs"], found["top_logprobs"], found["vllm_xargs"]) == (True, 2, {"x": 1})
    assert body({"prompt": "hi", "sampling_params": {"logprobs": 2}})["logprobs"] == 2


def test_prompts_in_a_list_are_choices() -> None:
    assert read({"prompt": ["a", "b"], "sampling_params": {"n": 2}}).native == Native(
        is_stream=False, choices=4
    )
    assert read({"prompt": [1, 2, 3]}).native == Native(is_stream=False, choices=1)


def test_the_engine_knows_the_fields_of_its_route() -> None:
    value = {"prompt": "hi", "sampling_params": {"brand_new": 1}}
    assert body(value, frozenset({"brand_new"}))["brand_new"] == 1
    with pytest.raises(BadInputError, match=r"^sampling_params\.brand_new: unknown$"):
        read(value)


WRONG = [
    (b"", "must be an object"),
    (b"[1]", "must be an object"),
    (b'"text"', "must be an object"),
    (b"{}", "must be an object"),
    (b'{"prompt": ', "^input: "),
    (b'{"prompt": "\\ud800"}', "^input: "),
    ({"openai_route": 5}, "^openai_route: must be a text"),
    ({"route": "v1/models"}, "^route: must begin with `/`"),
    ({"route": "/v1/models", "method": "TRACE"}, "^method: must be one of GET"),
    ({"prompt": "a", "messages": MESSAGES}, "^prompt, messages: give one"),
    ({"prompt": None}, "^prompt, messages: give one"),
    ({"prompt": "a", "stream": "yes"}, "^stream: must be true or false"),
    ({"prompt": ["a"], "apply_chat_template": True}, "^prompt: must be a text"),
    ({"prompt": "a", "sampling_params": [1]}, "^sampling_params: must be an object"),
    (
        {"prompt": "a", "sampling_params": {"temprature": 1}},
        r"^sampling_params\.temprature: unknown; did you mean temp",
    ),
    ({"prompt": "a", "sampling_params": {"guided_json": {}}}, "structured_outputs"),
    (
        {"prompt": "a", "sampling_params": {"stream": True}},
        r"^sampling_params\.stream: belongs in `input`",
    ),
]


@pytest.mark.parametrize(("value", "sentence"), WRONG)
def test_an_invalid_field_is_named(value: Any, sentence: str) -> None:
    with pytest.raises(BadInputError, match=sentence):
        read(value)


def test_a_deeply_nested_input_is_rejected() -> None:
    with pytest.raises(BadInputError, match=r"^input is nested too deeply$"):
        read(b'{"prompt": ' + b"[" * 100_000 + b"]" * 100_000 + b"}")
