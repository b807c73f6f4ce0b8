"""What the proxy itself says, it says in the dialect of the API that was asked."""

import json

import pytest
from harness.proxy.server import frames, serving
from pydantic import SecretStr

MESSAGES = "/v1/messages"
RESPONSES = "/v1/responses"
BODY = {"model": "m", "stream": True}


async def test_messages_have_anthropics_errors() -> None:
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
            assert response.status == 404  # the key is right, the model is not here
            assert (await response.json())["error"]["type"] == "not_found_error"
            assert response.headers["request-id"] == response.headers["x-request-id"]


async def test_a_stream_of_messages_waits_with_pings_and_ends_with_its_error_event() -> None:
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


async def test_a_stream_of_responses_ends_with_its_error_event() -> None:
    async with (
        serving(queue_timeout=2.0) as proxy,
        proxy.http.post(RESPONSES, json=BODY) as response,
    ):
        events = await frames(response)
    [(name, _, data)] = [event.partition(b"\ndata: ") for event in events]
    assert name == b"event: error"
    told = json.loads(data)
    assert (told["type"], told["code"]) == ("error", "no_workers")
    assert "No worker was free" in told["message"]


@pytest.mark.parametrize(
    ("path", "content_type", "status"),
    [
        ("/v1/audio/transcriptions", "application/json", 415),
        ("/v1/audio/transcriptions", "multipart/form-data; boundary=x", 503),
        ("/v1/embeddings", "multipart/form-data; boundary=x", 415),
        ("/v1/tokenize", "application/json", 503),
    ],
)
async def test_a_route_takes_its_own_kind_of_body(
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
async def test_what_is_not_kept_or_not_for_clients_is_not_there(path: str) -> None:
    async with serving() as proxy, proxy.http.get(path) as response:
        assert response.status == 404
