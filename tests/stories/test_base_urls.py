"""Base URLs without, with and with two `/v1`; key headers; WebSocket handshakes of clients."""

import json
from collections.abc import AsyncIterator

import anthropic
import openai
import pytest
import pytest_asyncio
from harness.network.raw_http import request, wire
from harness.proxy.server import Proxy, chat, serving
from harness.proxy.shared import Line
from pydantic import SecretStr

from proxy.api.openai.routes import BASES, ROUTES, AnsweredBy
from proxy.edge.gate import READ_METHODS

KEYS = {"alice": "alice-secret", "bob": "bob-secret"}
PLACES = [base.replace("{endpoint}", "default") for base in BASES]
HANDSHAKE = (
    "Connection: Upgrade",
    "Upgrade: websocket",
    "Sec-WebSocket-Version: 13",
    "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==",
)


@pytest_asyncio.fixture(scope="module")
async def keyed() -> AsyncIterator[Proxy]:
    """A proxy with keys of two owners, and without workers."""
    keys = [SecretStr(f"{owner}={key}") for owner, key in KEYS.items()]
    async with serving(api_key=keys, endpoint=["default=small"], queue_timeout=0.1) as proxy:
        yield proxy


@pytest.mark.parametrize("base", PLACES)
async def test_the_openai_client_needs_no_v1_in_its_base_url(line: Line, base: str) -> None:
    async with line.proxy.openai(base_url=f"{line.proxy.url}{base}") as client:
        answer = await client.chat.completions.create(**chat("x"))
        assert answer.choices[0].message.content == "x 0 x 1 x 2 x 3 x 4 "
        stream = await client.chat.completions.create(**chat("x", stream=True))
        assert len([chunk async for chunk in stream]) == 6
        assert [model.id for model in (await client.models.list()).data] == ["scripted"]
        assert (await client.models.retrieve("scripted")).id == "scripted"


@pytest.mark.parametrize("base", PLACES)
async def test_every_route_exists_with_and_without_v1(keyed: Proxy, base: str) -> None:
    """Without a key every route is rejected like its other form; with one, none is unknown."""
    for path, route in ROUTES.items():
        unversioned = path.removeprefix("/v1")
        for form in {path, unversioned}:
            for method in route.methods:
                async with keyed.http.request(method, f"{base}{form}") as response:
                    assert response.status == 401, (method, form)
                headers = {"Authorization": KEYS["alice"]}
                async with keyed.http.request(method, f"{base}{form}", headers=headers) as response:
                    is_list = route.answered_by is AnsweredBy.MODELS
                    assert response.status == (200 if is_list else 415), (method, form)


async def test_the_status_pages_keep_their_meaning(line: Line) -> None:
    for path, field in (
        *(("/", "name"), ("/health", "endpoints"), ("/ping", "status"), ("/livez", "status")),
        ("/readyz", "status"),
    ):
        async with line.proxy.http.get(path) as response:
            assert (response.status, field in await response.json()) == (200, True), path


@pytest.mark.parametrize(
    "path",
    [
        *("/sleep", "/v1/sleep", "/load_lora_adapter", "/chat", "/completion", "/metrics"),
        *("/openai/sleep", "/v2/default/openai/sleep", "/reset_prefix_cache", "/v2/embed/x"),
        *("/responses/resp_1", "/embed", "/v2/classify", "/docs", "/version", "/load"),
    ],
)
async def test_other_paths_do_not_exist(line: Line, path: str) -> None:
    async with line.proxy.http.post(path, json={}) as response:
        assert response.status == 404
        assert "error" in await response.json()


async def test_cohere_paths_do_not_hide_endpoints_of_the_same_name() -> None:
    async with serving(endpoint=["embed=small", "rerank=large"], queue_timeout=0.1) as proxy:
        for path, model in (("/v2/embed", "small"), ("/v2/rerank/", "large")):
            async with proxy.http.post(path, json={"model": model}) as response:
                assert (await response.json())["error"]["code"] == "no_workers"
        for path in ("/v2/embed/health", "/v2/rerank/health"):
            async with proxy.http.get(path) as response:
                assert (await response.json())["jobs"]["inQueue"] == 0
        async with proxy.http.post("/v2/embed/run", json={"input": 1}) as response:
            assert (await response.json())["status"] == "IN_QUEUE"


@pytest.mark.parametrize(
    ("path", "right"),
    [
        ("/v1/v1/chat/completions", "/v1/chat/completions"),
        ("/v1/v1/v1/models", "/v1/models"),
        ("/openai/v1/v1/responses", "/openai/v1/responses"),
        ("/v2/default/openai/v1/v1/embeddings", "/v2/default/openai/v1/embeddings"),
        ("/v1/v1/models/org/name", "/v1/models/org/name"),
    ],
)
async def test_a_repeated_v1_is_answered_with_the_right_url(
    line: Line, path: str, right: str
) -> None:
    async with line.proxy.http.post(path, json=chat()) as response:
        error = (await response.json())["error"]
    assert (response.status, error["code"]) == (404, "not_found")
    assert f"Use {line.proxy.url}{right}." in error["message"]
    async with line.proxy.http.post(
        path, json=chat(), headers={"X-Forwarded-Proto": "https", "Host": "localhost:1"}
    ) as response:
        assert f"https://localhost:1{right}." in (await response.json())["error"]["message"]


async def test_a_repeated_v1_of_an_unknown_path_has_no_right_url(line: Line) -> None:
    async with line.proxy.http.get("/v1/v1/nothing") as response:
        assert "Available: /v1/chat/completions" in (await response.json())["error"]["message"]


async def test_a_query_string_is_ignored(line: Line) -> None:
    for path in ("/v1/chat/completions", "/openai/v1/chat/completions", "/chat/completions"):
        async with line.proxy.http.post(f"{path}?api-version=preview", json=chat("x")) as response:
            assert response.status == 200


async def test_the_azure_client_works_with_its_own_key_header(keyed: Proxy) -> None:
    def client(key: str) -> openai.AsyncAzureOpenAI:
        return openai.AsyncAzureOpenAI(
            base_url=f"{keyed.url}/openai/v1", api_key=key, api_version="preview", max_retries=0
        )

    async with client(KEYS["alice"]) as azure:
        assert [model.id for model in (await azure.models.list()).data] == ["small"]
    async with client("wrong") as azure:
        with pytest.raises(openai.AuthenticationError):
            await azure.models.list()


async def test_a_key_in_two_headers_must_be_the_same(keyed: Proxy) -> None:
    alice = KEYS["alice"]
    bob = KEYS["bob"]
    for headers, status in (
        ({"Authorization": f"Bearer {alice}", "x-api-key": alice}, 200),
        ({"x-api-key": alice, "api-key": alice}, 200),
        ({"Authorization": "Bearer", "api-key": alice}, 200),
        ({"Authorization": "Bearer ", "x-api-key": "", "api-key": alice}, 200),
        ({"Authorization": alice, "x-api-key": bob}, 400),
        ({"Authorization": f"Bearer {alice}", "api-key": "wrong"}, 400),
        ({"x-api-key": alice, "api-key": bob}, 400),
        ({"Authorization": alice, "x-api-key": alice, "api-key": bob}, 400),
        ({"api-key": "wrong"}, 401),
        ({"api-key": ""}, 401),
    ):
        async with keyed.http.get("/v1/models", headers=headers) as response:
            assert response.status == status, headers
            text = await response.text()
        assert status != 400 or "different keys" in json.loads(text)["error"]["message"]
        assert alice not in text
        assert bob not in text
    for path in ("/v2/default/health", "/health"):
        async with keyed.http.get(path, headers={"api-key": alice}) as response:
            assert response.status == 401


async def test_anthropics_client_needs_no_v1_either(keyed: Proxy) -> None:
    """Its base URL ends before `/v1`, so that a base URL with `/v1` leads to two."""
    asked = {"model": "small", "max_tokens": 1, "messages": [{"role": "user", "content": "x"}]}
    for base, message in (("", "No worker"), ("/v1", f"Use {keyed.url}/v1/messages.")):
        async with anthropic.AsyncAnthropic(
            base_url=f"{keyed.url}{base}", api_key=KEYS["alice"], max_retries=0
        ) as client:
            with pytest.raises(anthropic.APIStatusError, match=message):
                await client.messages.create(**asked)  # type: ignore[call-overload]


@pytest.mark.parametrize("base", PLACES)
async def test_a_websocket_handshake_on_an_openai_route_is_426(keyed: Proxy, base: str) -> None:
    """Codex then uses HTTP at once; after any other status it repeats the handshake."""
    for path, route in ROUTES.items():
        for key in (f"Authorization: Bearer {KEYS['alice']}", "OpenAI-Beta: x"):
            async with wire(keyed) as connection:
                await connection.send(request(f"GET {base}{path}", *HANDSHAKE, key))
                answer = await connection.answer()
                assert await connection.rest() == b""
            assert answer.status == 426, path
            assert answer.headers[b"upgrade"] == b"HTTP/1.1"
            assert answer.headers[b"content-type"] == b"application/json"
            error = json.loads(answer.body)["error"]
            assert "WebSocket" in error["message"]
            if not path.endswith(("/messages", "/count_tokens")):
                assert (error["type"], error["code"]) == (
                    "invalid_request_error",
                    "upgrade_required",
                )
                allowed = READ_METHODS[0] if route.methods == READ_METHODS else "POST"
                assert allowed in error["message"]


async def test_a_websocket_handshake_elsewhere_names_the_path_of_workers(keyed: Proxy) -> None:
    for path in ("/v1/realtime", "/v1/v2/default/worker", "/livez", "/v2/default/run"):
        async with wire(keyed) as connection:
            await connection.send(request(f"GET {path}", *HANDSHAKE))
            answer = await connection.answer()
        assert answer.status == 404
        assert b"/v2/{endpoint}/worker" in answer.body
