"""Every error has a status, OpenAI's error object, and a retry hint."""

import json
from typing import Any

import openai
import pytest
from harness.proxy.server import CHAT, chat, frames
from harness.proxy.shared import Line

JSON = {"content-type": "application/json"}
MODEL = '{"model": "scripted", '

REFUSED = [
    ("POST", CHAT, '{"model":', JSON, 400, "invalid_json"),
    ("POST", CHAT, b"\xff{}", JSON, 400, "invalid_json"),
    ("POST", CHAT, "[1, 2]", JSON, 400, "invalid_body"),
    ("POST", CHAT, '"text"', JSON, 400, "invalid_body"),
    ("POST", CHAT, '{"model": 5}', JSON, 400, "invalid_body"),
    ("POST", CHAT, "{}", {"content-type": "text/plain"}, 415, "unsupported_media_type"),
    ("POST", CHAT, '{"model": "unknown"}', JSON, 404, "model_not_found"),
    (
        "POST",
        "/v2/nowhere/openai/v1/chat/completions",
        MODEL + '"messages": []}',
        JSON,
        404,
        "endpoint_not_found",
    ),
    (
        "POST",
        "/v2/default/openai/v1/chat/completions",
        '{"model": "unknown"}',
        JSON,
        404,
        "model_not_found",
    ),
    ("POST", "/v1/sleep", "{}", JSON, 404, "not_found"),
    ("POST", "/v1/load_lora_adapter", "{}", JSON, 404, "not_found"),
    ("POST", "/v2/a b/openai/v1/score", "{}", JSON, 404, "not_found"),
    ("GET", "/nothing", None, {}, 404, "not_found"),
    ("POST", "/readyz", None, {}, 405, "method_not_allowed"),
    ("GET", CHAT, None, {}, 405, "method_not_allowed"),
    ("DELETE", "/v1/models", None, {}, 405, "method_not_allowed"),
    ("GET", "/v1/models/unknown", None, {}, 404, "model_not_found"),
]


@pytest.mark.parametrize(
    ("path", "says"),
    [
        ("/v1", "The model `gpt-4o` is not served by endpoint default. Served: scripted."),
        ("/v2/default/openai/v1", "is not served by endpoint default. Served: scripted."),
        ("/v2/nowhere/openai/v1", "Unknown endpoint 'nowhere'. This proxy serves: default."),
    ],
)
async def test_an_unknown_name_is_answered_with_those_that_are_served(
    line: Line, path: str, says: str
) -> None:
    async with line.proxy.http.post(f"{path}/completions", json={"model": "gpt-4o"}) as response:
        assert response.status == 404
        assert says in (await response.json())["error"]["message"]


@pytest.mark.parametrize(("method", "path", "body", "headers", "status", "code"), REFUSED)
async def test_an_invalid_request_is_rejected_immediately(
    line: Line, method: str, path: str, body: Any, headers: dict[str, str], status: int, code: str
) -> None:
    async with line.proxy.http.request(method, path, data=body, headers=headers) as response:
        answer = await response.json()
        assert response.status == status, answer
        assert response.headers["content-type"] == "application/json"
        assert response.headers.get("x-request-id") or code in {"not_found", "method_not_allowed"}
        assert ("allow" in response.headers) == (status == 405)
    assert set(answer["error"]) == {"message", "type", "param", "code"}
    assert (answer["error"]["code"], answer["error"]["type"]) == (code, "invalid_request_error")
    assert answer["error"]["message"].endswith((".", "models."))


async def test_a_body_over_the_limit_is_rejected_with_and_without_a_length(line: Line) -> None:
    async def pieces() -> Any:
        for _ in range(21):
            yield b" " * 1024 * 1024

    async with line.proxy.http.post(CHAT, data=pieces(), headers=JSON) as response:
        assert response.status == 413
        assert (await response.json())["error"]["code"] == "request_too_large"
    async with line.proxy.http.post(
        CHAT, data=pieces(), headers=JSON | {"content-length": str(21 << 20)}
    ) as response:
        assert response.status == 413


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"messages": "hello"}, "valid list"),
        ({"messages": None}, "Field required"),
        ({"max_tokens": "many"}, "valid integer"),
        ({"max_tokens": 9_999_999}, "maximum context length"),
    ],
)
async def test_validation_errors_of_the_engine_are_passed_on(
    line: Line, wrong: dict[str, Any], says: str, stream: bool
) -> None:
    async with line.proxy.http.post(CHAT, json=chat(stream=stream) | wrong) as response:
        answer = await response.json()
        assert response.status == 400
        assert response.headers["content-type"] == "application/json"
    assert says in answer["error"]["message"]
    assert answer["error"]["code"] == 400  # vLLM's own code, unchanged


async def test_the_openai_client_raises_the_matching_exceptions(line: Line) -> None:
    async with line.proxy.openai() as client:
        with pytest.raises(openai.NotFoundError) as missing:
            await client.chat.completions.create(**chat() | {"model": "unknown"})
        with pytest.raises(openai.BadRequestError, match="maximum context length"):
            await client.chat.completions.create(**chat(stream=True) | {"max_tokens": 9_999_999})
    assert missing.value.code == "model_not_found"
    assert missing.value.param == "model"
    assert missing.value.request_id is not None


async def test_an_error_event_of_the_engine_is_passed_on(line: Line) -> None:
    async with line.proxy.http.post(
        CHAT, json=chat(stream=True, fault="error_event:2")
    ) as response:
        assert response.status == 200
        events = await frames(response)
    assert json.loads(events[-2].removeprefix(b"data: "))["error"]["message"] == "scripted failure"
    assert events[-1] == b"data: [DONE]"


async def test_an_engine_error_keeps_its_status(line: Line) -> None:
    async with line.proxy.http.post(CHAT, json=chat(fault="status:500")) as response:
        assert response.status == 500
        assert (await response.json())["error"]["type"] == "InternalServerError"
