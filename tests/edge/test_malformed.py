"""Malformed requests, sent directly to the proxy: none is served or affects later requests."""

import asyncio

import pytest
from harness.network.attack import attack_all, is_answered, listed
from harness.network.malformed import CASES, TOKEN
from harness.proxy.server import Proxy, serving

pytestmark = pytest.mark.slow

CONCURRENT_ATTACKS = 16


def test_the_corpus_has_three_hundred_distinct_cases() -> None:
    assert len({(case.raw, case.ends) for case in CASES}) == len(CASES)
    assert len({case.name for case in CASES}) == len(CASES)
    assert sum(not case.odd for case in CASES) >= 300


async def jobs(proxy: Proxy) -> int:
    """Return the number of jobs; malformed requests must not create any."""
    async with proxy.http.get("/v2/default/health") as response:
        return sum((await response.json())["jobs"].values())


@pytest.mark.timeout(120)
async def test_no_malformed_request_is_served() -> None:
    # An exception in a protocol closes the connection, which would look like a refusal.
    broken: list[str] = []
    asyncio.get_running_loop().set_exception_handler(
        lambda _loop, context: broken.append(str(context))
    )
    async with serving(worker_token=TOKEN, head_timeout=1.0, body_grace=1.0) as proxy:
        wrong = await attack_all(proxy.url, CASES, CONCURRENT_ATTACKS)
        assert await is_answered(proxy.url) == ""
        left = await jobs(proxy)
        odd = sum(case.odd for case in CASES)
    assert not wrong, listed(wrong)
    assert not broken
    assert left <= odd
