"""Attacks on memory: more and larger bodies than there is room for. Each is answered, and the proxy stays small."""

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

LARGEST = 20 * MB
BUDGET = 256 * MB
MOST_MEMORY = 512 * MB
COMPLETION, RUN, RUNSYNC = (
    "/v2/default/openai/v1/completions",
    "/v2/default/run",
    "/v2/default/runsync?wait=1000",
)
SETTINGS = {
    "body_budget": BUDGET,
    "queue_timeout": 3,
    "limit": "openai=0/0 run=0/0 runsync=0/0",
    "log_level": "warning",
}

FILLS = text(LARGEST - MB)
"""Almost as large as may be."""
WIDE = text(LARGEST - MB, "\U0001f600")
"""One character makes each of the others four bytes wide, for who decodes them into a string."""
INPUT = Body(b'{"input":"', FILLS.piece, FILLS.times, b'"}')
LISTS = Body(b'{"prompt":[', b"[]," * 20_000, LARGEST // 60_000 - 1, b"[]]}")
DEEP = Body(b'{"prompt":', b"[" * 50_000, 200, b"")


def code(answer: Answer) -> str:
    """Why it was refused."""
    told = json.loads(answer.body).get("error")
    return str(told["code"] if isinstance(told, dict) else told)


def is_proper(answer: Answer) -> bool:
    """Whether the client knows what to do."""
    return answer.status in {200, 400, 413} or (
        answer.status in {429, 503} and "retry-after" in answer.headers
    )


async def storm(url: str, bodies: int) -> Counter[int]:
    """So many large bodies at once, of all kinds; how often each status came."""
    kinds = ((COMPLETION, FILLS), (COMPLETION, WIDE), (RUNSYNC, INPUT), (COMPLETION, LISTS))
    answers = await asyncio.gather(
        *(upload(url, *kinds[number % len(kinds)]) for number in range(bodies))
    )
    wrong = [answer for answer in answers if not is_proper(answer)]
    assert not wrong, (len(wrong), wrong[0])
    return Counter(answer.status for answer in answers)


async def has_room(url: str) -> bool:
    """Whether the whole budget is there again: as many bodies as it has room for are let in, all at once."""
    answers = await asyncio.gather(
        *(upload(url, COMPLETION, FILLS) for _ in range(BUDGET // LARGEST))
    )
    return {code(answer) for answer in answers} == {"no_workers"}


async def attacked(proxy: Alone, bodies: int) -> None:
    """Attack it, and see that it has stayed small and serves on."""
    proxy.forget_most()
    async with healthy(proxy.url) as waits:
        statuses = await storm(proxy.url, bodies)
    assert waits.statuses == {200}
    tell(
        "memory at its most under large bodies",
        proxy.most_memory() / MB,
        f"<= {MOST_MEMORY // MB}",
        "MB",
    )
    tell("healthy p99 under large bodies", waits.p99() * 1000, "", "ms")
    for status, number in sorted(statuses.items()):
        tell(f"large bodies answered with {status}", number)
    assert proxy.most_memory() <= MOST_MEMORY
    assert await is_answered(proxy.url) == ""
    assert await has_room(proxy.url)
    assert proxy.most_memory() <= MOST_MEMORY


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
async def test_what_can_only_grow_is_refused_while_it_comes(tmp_path: Path) -> None:
    gigabyte = Body(b'{"prompt":"', FILLS.piece, 1024 * MB // len(FILLS.piece), b'"}')
    async with alone(tmp_path, **SETTINGS) as proxy:
        before = proxy.memory()
        proxy.forget_most()
        assert (await upload(proxy.url, COMPLETION, gigabyte, chunked=True)).status == 413
        assert (await upload(proxy.url, RUN, gigabyte, chunked=True)).status == 413
        assert (await upload(proxy.url, COMPLETION, DEEP)).status == 400
        zipped = await upload(proxy.url, COMPLETION, FILLS, fields=("Content-Encoding: gzip",))
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
