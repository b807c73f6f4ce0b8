"""Attacks on memory: bodies above the limits are all answered, and memory stays bounded."""

import asyncio
import json
from collections import Counter
from pathlib import Path

import pytest
from harness.load.bystander import healthy
from harness.load.figures import tell
from harness.load.upload import Body, head, text, upload
from harness.network.attack import is_answered
from harness.network.malformed.case import asks
from harness.network.raw_connection import Answer, strict
from harness.proxy.process import MB, Alone, alone

pytestmark = pytest.mark.slow

LARGE_BODY_BYTES = 20 * MB
BODY_BUDGET_BYTES = 256 * MB
MEMORY_LIMIT = 512 * MB
COMPLETION = "/v2/default/openai/v1/completions"
RUN = "/v2/default/run"
RUNSYNC = "/v2/default/runsync?wait=1000"
SETTINGS = {
    "body_budget": BODY_BUDGET_BYTES,
    "queue_timeout": 3,
    "limit": "openai=0/0 run=0/0 runsync=0/0",
    "log_level": "warning",
}

ALMOST_FULL = text(LARGE_BODY_BYTES - MB)
"""Almost as large as allowed."""
WIDE = text(LARGE_BODY_BYTES - MB, "\U0001f600")
"""One character makes all others four bytes wide when the body is decoded into a string."""
INPUT = Body(b'{"input":"', ALMOST_FULL.piece, ALMOST_FULL.times, b'"}')
LISTS = Body(b'{"prompt":[', b"[]," * 20_000, LARGE_BODY_BYTES // 60_000 - 1, b"[]]}")
DEEP = Body(b'{"prompt":', b"[" * 50_000, 200, b"")


def code(answer: Answer) -> str:
    """Return the error code of a refusal, or its message."""
    error = json.loads(answer.body).get("error")
    return str(error["code"] if isinstance(error, dict) else error)


def is_proper(answer: Answer) -> bool:
    """Return True for an expected status, with `Retry-After` if the client should retry."""
    if answer.status in {429, 503}:
        return "retry-after" in answer.headers
    return answer.status in {200, 400, 413}


async def storm(url: str, bodies: int) -> Counter[int]:
    """Upload large bodies of all kinds concurrently; return the number of responses by status."""
    kinds = ((COMPLETION, ALMOST_FULL), (COMPLETION, WIDE), (RUNSYNC, INPUT), (COMPLETION, LISTS))
    answers = await asyncio.gather(
        *(upload(url, *kinds[number % len(kinds)]) for number in range(bodies))
    )
    wrong = [answer for answer in answers if not is_proper(answer)]
    assert not wrong, (len(wrong), wrong[0])
    return Counter(answer.status for answer in answers)


async def has_room(url: str) -> bool:
    """Return True if the whole budget is free and admits as many bodies as it can hold."""
    answers = await asyncio.gather(
        *(
            upload(url, COMPLETION, ALMOST_FULL)
            for _ in range(BODY_BUDGET_BYTES // LARGE_BODY_BYTES)
        )
    )
    return {code(answer) for answer in answers} == {"no_workers"}


async def attacked(proxy: Alone, bodies: int) -> None:
    """Send large bodies; check that memory stays bounded and other clients are served."""
    proxy.forget_most()
    async with healthy(proxy.url) as waits:
        statuses = await storm(proxy.url, bodies)
    assert waits.statuses == {200}
    tell(
        "memory at its most under large bodies",
        proxy.most_memory() / MB,
        f"<= {MEMORY_LIMIT // MB}",
        "MB",
    )
    tell("healthy p99 under large bodies", waits.p99() * 1000, "", "ms")
    for status, number in sorted(statuses.items()):
        tell(f"large bodies answered with {status}", number)
    assert proxy.most_memory() <= MEMORY_LIMIT
    assert await is_answered(proxy.url) == ""
    assert await has_room(proxy.url)
    assert proxy.most_memory() <= MEMORY_LIMIT


@pytest.mark.timeout(120)
async def test_sixty_large_bodies_at_once_are_all_answered(tmp_path: Path) -> None:
    async with alone(tmp_path, **SETTINGS) as proxy:
        await attacked(proxy, 60)


@pytest.mark.torture
@pytest.mark.timeout(600)
async def test_four_hundred_large_bodies_at_once_are_all_answered(tmp_path: Path) -> None:
    async with alone(tmp_path, **SETTINGS) as proxy:
        await attacked(proxy, 400)


@pytest.mark.timeout(60)
async def test_an_oversized_request_is_refused_before_it_is_complete(tmp_path: Path) -> None:
    gigabyte = Body(b'{"prompt":"', ALMOST_FULL.piece, 1024 * MB // len(ALMOST_FULL.piece), b'"}')
    async with alone(tmp_path, **SETTINGS) as proxy:
        before = proxy.memory()
        proxy.forget_most()
        assert (await upload(proxy.url, COMPLETION, gigabyte, chunked=True)).status == 413
        assert (await upload(proxy.url, RUN, gigabyte, chunked=True)).status == 413
        assert (await upload(proxy.url, COMPLETION, DEEP)).status == 400
        zipped = await upload(
            proxy.url, COMPLETION, ALMOST_FULL, fields=("Content-Encoding: gzip",)
        )
        assert zipped.status == 415
        for raw, status in (
            (head(COMPLETION, f"Content-Length: {10**12}"), 413),
            (head(RUN, f"Content-Length: {10**12}"), 413),
            (asks(*[b"X: y"] * 1_000_000), 431),
        ):
            async with strict(proxy.url) as line:
                await line.say(raw)
                answer = await line.answer()
                assert answer is not None
                assert answer.status == status
        grown = proxy.most_memory() - before
        tell("memory grown by endless requests", grown / MB, "<= 128", "MB")
        assert grown <= 128 * MB
        assert await is_answered(proxy.url) == ""
