"""If a key is configured, every request needs it."""

from collections.abc import AsyncIterator

import openai
import pytest
import pytest_asyncio
from harness.proxy.server import CHAT, Proxy, serving
from pydantic import SecretStr


@pytest_asyncio.fixture(scope="module")
async def locked() -> AsyncIterator[Proxy]:
    """A proxy with a key for one owner."""
    async with serving(
        api_key=[SecretStr("alice=open-sesame")], endpoint=["default=small"]
    ) as proxy:
        yield proxy


@pytest.mark.parametrize("header", [None, "Bearer wrong", "open-sesam", "Bearer alice=open-sesame"])
@pytest.mark.parametrize(
    ("method", "path"),
    [("GET", "/v1/models"), ("POST", CHAT), ("POST", "/v2/no/openai/v1/completions")],
)
async def test_a_wrong_key_is_rejected_before_anything_else(
    locked: Proxy, method: str, path: str, header: str | None
) -> None:
    headers = {"authorization": header} if header else {}
    async with locked.http.request(
        method, path, headers=headers, data=b"not even json"
    ) as response:
        assert response.status == 401
        assert response.headers["www-authenticate"] == "Bearer"
        answer = await response.json()
    assert answer["error"]["code"] == "invalid_api_key"
    assert "sesame" not in str(answer)


@pytest.mark.parametrize("header", ["Bearer open-sesame", "open-sesame"])
async def test_a_valid_key_is_accepted_with_and_without_bearer(locked: Proxy, header: str) -> None:
    async with locked.http.get("/v1/models", headers={"authorization": header}) as response:
        assert response.status == 200


async def test_the_openai_client_raises_an_authentication_error(locked: Proxy) -> None:
    async with locked.openai(api_key="wrong") as client:
        with pytest.raises(openai.AuthenticationError):
            await client.models.list()


async def test_the_worker_token_is_not_a_client_key(locked: Proxy) -> None:
    async with locked.http.get(
        "/v1/models", headers={"authorization": f"Bearer {locked.parts.token}"}
    ) as response:
        assert response.status == 401
