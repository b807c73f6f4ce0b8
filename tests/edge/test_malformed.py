"""Malformed requests, straight to the proxy: none is served, and none upsets what follows it."""

import asyncio

import pytest
from harness.network.attack import attack_all, is_answered, listed
from harness.network.malformed import CASES, TOKEN
from harness.proxy.server import Proxy, serving

AT_ONCE = 16


def test_the_corpus_has_three_hundred_and_each_once() -> None:
    assert (
        len({(case.raw, case.ends) for case in CASES})
        == len({case.name for case in CASES})
        == len(CASES)
    )
    assert sum(not case.odd for case in CASES) >= 300


async def jobs(proxy: Proxy) -> int:
    """How many jobs there are that should not be."""
    async with proxy.http.get("/v2/default/health") as response:
        return sum((await response.json())["jobs"].values())


@pytest.mark.timeout(120)
async def test_no_malformed_request_is_served() -> None:
    broken: list[
        str
    ] = []  # an exception in a protocol closes the connection, which looks like a refusal
    asyncio.get_running_loop().set_exception_handler(
        lambda _loop, context: broken.append(str(context))
    )
    async with serving(worker_token=TOKEN, head_timeout=1.0, body_grace=1.0) as proxy:
        wrong = await attack_all(proxy.url, CASES, AT_ONCE)
        assert await is_answered(proxy.url) == ""
        left = await jobs(proxy)
        odd = sum(case.odd for case in CASES)
    assert not wrong, listed(wrong)
    assert not broken
    assert left <= odd
