"""The models of endpoints that only Runpod workers serve: one of the workers is asked for them."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import aiohttp
import pytest
from harness.proxy.server import CHAT, Proxy, chat, serving
from harness.runpod.raw_worker import Raw
from harness.tools.waiting import until
from harness.worker.puppet import hello, puppet

from proxy.channel.runpod.models import WAIT_SECONDS
from proxy.wire.frames import Credit, Model

CARD = {"id": "org/Small", "object": "model", "owned_by": "vllm", "root": "/weights/small"}
QUESTION = {"openai_route": "/v1/models"}


def listing(*names: str) -> list[Any]:
    """Return the output of worker-vllm for these models."""
    return [{"object": "list", "data": [CARD | {"id": name} for name in names]}]


async def models(proxy: Proxy, path: str = "/v1/models") -> Any:
    async with proxy.http.get(path) as response:
        return await response.json()


async def names(proxy: Proxy, path: str = "/v1/models") -> list[str]:
    return [model["id"] for model in (await models(proxy, path))["data"]]


async def call(proxy: Proxy, model: str, path: str = CHAT) -> tuple[int, Any]:
    async with proxy.http.post(path, json=chat(model=model)) as response:
        return response.status, await response.json()


async def answer(stock: Raw, output: Any) -> Any:
    """Answer the next job of a worker; return its input."""
    job = await stock.next_job()
    await stock.done(job["id"], {"output": output})
    return job["input"]


@asynccontextmanager
async def connected(proxy: Proxy, name: str = "pod-1") -> AsyncIterator[Raw]:
    """Connect a Runpod worker that has no poll open."""
    async with Raw(proxy, name) as stock:
        polling = asyncio.create_task(stock.take())
        await until(lambda: proxy.parts.fleet.get(name) is not None)
        polling.cancel()
        await asyncio.gather(polling, return_exceptions=True)
        yield stock


async def test_a_worker_is_asked_for_its_models() -> None:
    async with serving(poll_hold=2.0) as proxy, connected(proxy) as stock:
        asking = asyncio.create_task(models(proxy))
        assert await answer(stock, listing("org/Small", "adapter")) == QUESTION
        found = (await asking)["data"]
        assert [model["id"] for model in found] == ["org/Small", "adapter"]
        assert found[0] == CARD | {"root": "org/Small"}
        # No worker is asked a second time.
        assert (await models(proxy, "/v1/models/org/Small"))["id"] == "org/Small"
        assert (await call(proxy, "unknown"))[0] == 404


async def test_a_flat_path_finds_the_endpoint_by_the_answer() -> None:
    async with serving(poll_hold=2.0, endpoint=["first=small", "default"]) as proxy:
        async with connected(proxy) as stock:
            calling = asyncio.create_task(call(proxy, "other"))
            assert await answer(stock, listing("other")) == QUESTION
            request = await answer(stock, {"id": "chatcmpl-1"})
            assert request["openai_input"]["model"] == "other"
            assert await calling == (200, {"id": "chatcmpl-1"})
            assert (await call(proxy, "unknown"))[0] == 404


async def test_another_handler_is_not_asked_again_and_gets_every_call() -> None:
    async with serving(poll_hold=2.0) as proxy, connected(proxy) as stock:
        asking = asyncio.create_task(names(proxy))
        job = await stock.next_job()
        await stock.done(job["id"], {"error": "KeyError: prompt"})
        assert await asking == []
        assert await names(proxy) == []
        calling = asyncio.create_task(call(proxy, "any"))
        await answer(stock, {"id": "chatcmpl-1"})
        assert await calling == (200, {"id": "chatcmpl-1"})


async def test_a_worker_that_does_not_answer_delays_only_the_first_clients() -> None:
    async with serving(poll_hold=2.0) as proxy, connected(proxy) as stock:
        asking = asyncio.create_task(names(proxy))
        job = await stock.next_job()
        assert await asking == []
        async with asyncio.timeout(WAIT_SECONDS / 2):
            assert await names(proxy) == []
        # A late answer still counts.
        await stock.done(job["id"], {"output": listing("late")})
        await until(lambda: _has_models(proxy, ["late"]))


async def test_a_list_of_own_workers_does_not_outlive_them() -> None:
    async with serving(poll_hold=2.0) as proxy:
        own = (hello("own", [Model("own-model", b'{"id":"own-model"}')]), Credit(1, 0))
        async with puppet(proxy, *own):
            await until(lambda: _has_models(proxy, ["own-model"]))
            async with connected(proxy) as stock:
                # As long as both are here, the own worker knows.
                assert (await call(proxy, "other"))[0] == 404
        # Without any worker, the list is the best that is known.
        await until(lambda: not [one for one in proxy.parts.fleet if one.id == "own"])
        async with connected(proxy, "pod-2") as stock:
            calling = asyncio.create_task(call(proxy, "other"))
            request = await answer(stock, {"id": "chatcmpl-1"})
            assert request["openai_input"]["model"] == "other"
            assert await calling == (200, {"id": "chatcmpl-1"})
            asking = asyncio.create_task(names(proxy))
            assert await answer(stock, listing("other")) == QUESTION
            assert await asking == ["other"]
            # A worker that joins may serve another model.
            async with connected(proxy, "pod-3") as newer:
                asking = asyncio.create_task(names(proxy))
                assert await answer(newer, listing("newer")) == QUESTION
                assert await asking == ["newer"]


async def test_a_list_does_not_outlive_the_worker_that_gave_it() -> None:
    async with serving(poll_hold=2.0, line_gap=0.1) as proxy:
        async with connected(proxy) as stock:
            asking = asyncio.create_task(names(proxy))
            await answer(stock, listing("first"))
            assert await asking == ["first"]
        await until(lambda: proxy.parts.fleet.get("pod-1") is None, what="it has left")
        async with connected(proxy, "pod-2") as other:
            asking = asyncio.create_task(names(proxy))
            job = await other.next_job()
            await other.done(job["id"], {"error": "KeyError: prompt"})
            assert await asking == []
            # The endpoint accepts any model now.
            calling = asyncio.create_task(call(proxy, "second"))
            await answer(other, {"id": "chatcmpl-1"})
            assert await calling == (200, {"id": "chatcmpl-1"})


async def test_a_configured_model_is_not_asked_for() -> None:
    async with serving(poll_hold=2.0, endpoint=["default=big"]) as proxy, connected(proxy):
        assert await names(proxy) == ["big"]


@pytest.mark.parametrize(
    "output",
    [
        [{"data": [{"id": "a\nb"}]}],
        [{"data": [{"id": 1}]}],
        [{"data": {}}],
        ["no list"],
        [{"data": [CARD | {"more": "x" * 70_000}]}],
    ],
)
async def test_an_invalid_list_is_ignored(output: Any) -> None:
    async with serving(poll_hold=2.0) as proxy, connected(proxy) as stock:
        asking = asyncio.create_task(names(proxy))
        await answer(stock, output)
        assert await asking == []


async def _has_models(proxy: Proxy, wanted: list[str]) -> bool:
    return await names(proxy) == wanted


async def test_the_question_is_not_shown_to_clients() -> None:
    async with serving(poll_hold=2.0) as proxy, connected(proxy) as stock:
        asking = asyncio.create_task(names(proxy))
        await answer(stock, listing("small"))
        await asking
        async with aiohttp.ClientSession(proxy.url) as http:
            async with http.get("/v2/default/requests") as response:
                assert (await response.json())["requests"] == []
