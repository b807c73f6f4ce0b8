"""Errors and heartbeats of the proxy use the format of the API that was called."""

import json

import pytest
from harness.proxy.server import frames, serving
from pydantic import SecretStr

MESSAGES = "/v1/messages"
RESPONSES = "/v1/responses"
BODY = {"model": "m", "stream": True}


async def test_the_messages_api_returns_anthropic_errors() -> None:
    async with serving(api_key=[SecretStr("k")], endpoint=["default=small"]) as proxy:
        async with proxy.http.post(MESSAGES, json=BODY) as response:
            assert response.status == 401
            assert await response.json() == {
                "type": "error",
                "error": {
                    "type": "authentication_error",
                    "message": "Wrong or missing API key: send `Authorization: Bearer KEY`.",
                },
            }
        async with proxy.http.post(MESSAGES, json=BODY, headers={"x-api-key": "k"}) as response:
            assert response.status == 404  # the key is valid, and the model does not exist
            assert (await response.json())["error"]["type"] == "not_found_error"
            assert response.headers["request-id"] == response.headers["x-request-id"]


async def test_a_messages_stream_receives_pings_and_ends_with_an_error_event() -> None:
    async with (
        serving(queue_timeout=2.0) as proxy,
        proxy.http.post(MESSAGES, json=BODY) as response,
    ):
        assert response.status == 200
        events = await frames(response)
    assert events[0] == b'event: ping\ndata: {"type": "ping"}'
    name, _, data = events[-1].partition(b"\ndata: ")
    assert name == b"event: error"
    assert json.loads(data)["error"]["type"] == "overloaded_error"
    assert b"[DONE]" not in b"".join(events)


async def test_a_responses_stream_ends_with_its_failure() -> None:
    async with (
        serving(queue_timeout=1.5) as proxy,
        proxy.http.post(RESPONSES, json=BODY) as response,
    ):
        events = await frames(response)
    names = [event.partition(b"\ndata: ")[0] for event in events]
    assert names == [b"event: response.created", b"event: error", b"event: response.failed"]
    error = json.loads(events[1].partition(b"\ndata: ")[2])
    assert (error["type"], error["code"]) == ("error", "no_workers")
    assert error["message"].endswith(" No worker is connected.")


@pytest.mark.parametrize(
    ("path", "content_type", "status"),
    [
        ("/v1/audio/transcriptions", "application/json", 415),
        ("/v1/audio/transcriptions", "multipart/form-data; boundary=x", 503),
        ("/v1/embeddings", "multipart/form-data; boundary=x", 415),
        ("/v1/tokenize", "application/json", 503),
    ],
)
async def test_each_route_accepts_only_its_content_type(
    path: str, content_type: str, status: int
) -> None:
    async with serving(queue_timeout=0.3) as proxy:
        async with proxy.http.post(
            path, data=b"{}", headers={"content-type": content_type}
        ) as response:
            assert response.status == status


@pytest.mark.parametrize(
    "path",
    ["/v1/responses/resp_1", "/v1/responses/resp_1/cancel", "/openai/metrics", "/openai/sleep"],
)
async def test_stored_responses_and_internal_routes_are_404(path: str) -> None:
    async with serving() as proxy, proxy.http.get(path) as response:
        assert response.status == 404
