"""Validation of request bodies."""

import pytest

from proxy.api.errors import ApiError
from proxy.api.http import JSON_TYPE, peek, require_type


async def test_only_model_and_stream_are_read() -> None:
    seen = await peek(b'{"model": "m", "stream": true, "messages": "whatever", "n": {"x": []}}')
    assert (seen.model, seen.is_streaming) == ("m", True)


@pytest.mark.parametrize("stream", [b"false", b"null", b'"yes"', b"1", b"[]"])
async def test_only_a_literal_true_selects_a_stream(stream: bytes) -> None:
    assert not (await peek(b'{"stream": %b}' % stream)).is_streaming


@pytest.mark.parametrize(
    ("body", "code"),
    [
        (b"", "invalid_json"),
        (b'{"model":', "invalid_json"),
        (b'{"model": "\xff"}', "invalid_json"),
        (b'{"x": NaN}', "invalid_json"),
        (b"[]", "invalid_body"),
        (b'"text"', "invalid_body"),
        (b'{"model": 5}', "invalid_body"),
        (b'{"x":' + b"[" * 1_000_000 + b"]" * 1_000_000 + b"}", "invalid_json"),
        (b"[" * 1_000_000, "invalid_body"),
    ],
    ids=["empty", "cut", "not utf-8", "nan", "array", "string", "model", "deep", "deep array"],
)
async def test_an_invalid_body_is_rejected_with_a_sentence(body: bytes, code: str) -> None:
    with pytest.raises(ApiError) as refused:
        await peek(body)
    assert refused.value.code in {code, "invalid_json"}
    assert refused.value.row.status == 400
    assert refused.value.message.endswith(".")


async def test_a_body_that_is_nested_too_deeply_is_rejected_without_text_of_python() -> None:
    with pytest.raises(ApiError, match=r"^The body is nested too deeply\.$"):
        await peek(b'{"x":' + b"[" * 1_500 + b"]" * 1_500 + b"}")


@pytest.mark.parametrize(
    "content_type", [b"", b"text/plain", b"multipart/form-data; boundary=x", b"application/jsonx"]
)
def test_other_content_types_are_rejected(content_type: bytes) -> None:
    with pytest.raises(ApiError) as refused:
        require_type(content_type, JSON_TYPE)
    assert refused.value.row.status == 415


@pytest.mark.parametrize("content_type", [b"application/json", b"Application/JSON; charset=utf-8"])
def test_json_is_accepted(content_type: bytes) -> None:
    require_type(content_type, JSON_TYPE)
