"""Models, and the health routes, with and without workers."""

import json
from pathlib import Path

import openai
import pytest
from harness.proxy.server import Proxy, serving
from harness.proxy.shared import Line
from harness.tools.waiting import until
from harness.worker.puppet import hello, puppet

from proxy.wire.frames import Model

BASE_CARD = b'{"id":"base","root":"/srv/weights","parent":null,"max_model_len":8192,"x":1e400}'
ADAPTER_CARD = b'{"id":"pirate","root":"/srv/adapters/pirate","parent":"base"}'
CARD_WITHOUT_ROOT = b'{"id":"other","object":"model"}'


async def test_models_are_listed_with_the_cards_of_the_engine(line: Line) -> None:
    async with line.proxy.openai() as client:
        models = await client.models.list()
    assert [(model.id, model.owned_by) for model in models.data] == [("scripted", "vllm")]


async def test_model_cards_do_not_show_paths_of_the_worker(proxy: Proxy) -> None:
    models = [
        Model("base", BASE_CARD),
        Model("pirate", ADAPTER_CARD, base=False),
        Model("other", CARD_WITHOUT_ROOT),
    ]
    expected = [
        BASE_CARD.replace(b"/srv/weights", b"base"),
        ADAPTER_CARD.replace(b"/srv/adapters/pirate", b"pirate"),
        CARD_WITHOUT_ROOT,
    ]
    async with puppet(proxy, hello(models=models)):
        await until(lambda: _announced(proxy), what="the models are announced")
        async with proxy.http.get("/v1/models") as response:
            listed = await response.read()
        for model, card in zip(models, expected, strict=True):
            async with proxy.http.get(f"/v1/models/{model.id}") as response:
                assert await response.read() == card
    assert listed == b'{"object":"list","data":[%b]}' % b",".join(expected)


async def _announced(proxy: Proxy) -> bool:
    async with proxy.http.get("/v1/models") as response:
        return bool(json.loads(await response.read())["data"])


async def test_configured_models_are_listed_without_a_worker() -> None:
    async with (
        serving(endpoint=["default=small", "big=Qwen/Qwen3-8B"]) as proxy,
        proxy.openai() as client,
    ):
        assert [model.id for model in (await client.models.list()).data] == [
            "small",
            "Qwen/Qwen3-8B",
        ]
        assert (await client.models.retrieve("Qwen/Qwen3-8B")).id == "Qwen/Qwen3-8B"
        async with proxy.http.get("/v1/models/Qwen%2FQwen3-8B") as response:
            assert response.status == 200
        async with proxy.http.get("/v2/default/openai/v1/models") as response:
            assert [model["id"] for model in (await response.json())["data"]] == ["small"]
        async with proxy.http.head("/v1/models/") as response:
            assert response.status == 200
            assert await response.read() == b""
        with pytest.raises(openai.NotFoundError):
            await client.models.retrieve("nobody")


async def test_models_are_known_after_a_restart(tmp_path: Path) -> None:
    """They are listed, and any other name is rejected at once, also before a worker connects."""
    models = [Model("base", BASE_CARD), Model("pirate", ADAPTER_CARD, base=False)]
    async with serving(data_dir=tmp_path) as proxy, puppet(proxy, hello(models=models)):
        await until(lambda: _announced(proxy), what="the models are announced")
        async with proxy.http.get("/v1/models") as response:
            listed = await response.read()
        await until(lambda: _stored(proxy), what="the models are stored")
    async with serving(data_dir=tmp_path) as proxy, proxy.openai() as client:
        async with proxy.http.get("/v1/models") as response:
            assert await response.read() == listed
        with pytest.raises(openai.NotFoundError) as wrong:
            await client.chat.completions.create(model="gpt-4o", messages=[])
        assert wrong.value.body == {
            "message": "The model `gpt-4o` is not served by endpoint default."
            " Served: base, pirate.",
            "type": "invalid_request_error",
            "param": "model",
            "code": "model_not_found",
        }
        async with puppet(proxy, hello("w-2", models=[Model("other", CARD_WITHOUT_ROOT)])):
            await until(lambda: _serves(proxy, "other"), what="another model replaces them")
            async with proxy.http.get("/v1/models/base") as response:
                assert response.status == 404


async def _stored(proxy: Proxy) -> bool:
    return bool(await proxy.parts.store.served_models())


async def _serves(proxy: Proxy, model: str) -> bool:
    async with proxy.http.get(f"/v1/models/{model}") as response:
        return response.status == 200


async def test_health_routes_answer_get_and_head(line: Line) -> None:
    for path in ("/", "/livez", "/readyz", "/health", "/ping"):
        async with line.proxy.http.get(path) as response:
            assert response.status == 200
        async with line.proxy.http.head(path) as response:
            assert response.status == 200


async def test_a_proxy_without_workers_is_alive_but_not_ready() -> None:
    async with serving() as proxy:
        async with proxy.http.get("/livez") as response:
            assert response.status == 200
        async with proxy.http.get("/readyz") as response:
            assert response.status == 503
            assert (await response.json())["status"] == "no worker is ready"
