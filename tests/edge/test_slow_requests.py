"""Clients that never complete their requests: each times out, and no other client waits for it."""

import re
from pathlib import Path

import pytest
from harness.load.bystander import healthy
from harness.load.figures import tell
from harness.load.slow_senders import HALF_BODY, HALF_HEAD, Drip, dripping
from harness.proxy.process import alone
from harness.tools.waiting import until

REFUSAL = re.compile(
    rb"HTTP/1\.1 408 [^\r]*\r\n(?=.*\r\nconnection: close\r\n).*", re.DOTALL | re.IGNORECASE
)
HEAD_SECONDS = 12.0
BODY_SECONDS = 130.0
MAX_ATTEMPTS = 3


async def cut_all(
    folder: Path, heads: int, bodies: int, seconds: float, **settings: float
) -> tuple[list[Drip], float]:
    """Send incomplete requests, and wait up to `seconds` until all connections are closed.

    Returns the connections, and the p99 latency of another client.
    """
    async with alone(folder, limit="run=0/0", **settings) as proxy:
        starts = [HALF_HEAD] * heads + [HALF_BODY] * bodies
        async with healthy(proxy.url) as waits, dripping(proxy.url, starts) as drips:
            await until(
                lambda: all(drip.lasted is not None for drip in drips),
                seconds,
                "all connections are closed",
            )
        assert waits.statuses == {200}
        assert all(REFUSAL.fullmatch(drip.received) or not drip.received for drip in drips)
        assert sum(drip.received != b"" for drip in drips) > len(drips) / 2, (
            "most clients receive the refusal"
        )
        return drips, waits.p99()


def lasted(drips: list[Drip]) -> float:
    return max((drip.lasted or 0.0 for drip in drips), default=0.0)


def report(heads: list[Drip], bodies: list[Drip], p99: float) -> None:
    tell("slow heads cut", lasted(heads), f"<= {HEAD_SECONDS}", "s")
    tell("slow bodies cut", lasted(bodies), f"<= {BODY_SECONDS}", "s")
    tell("healthy p99 beside slow clients", p99 * 1000, "< 100", "ms")


async def test_an_incomplete_request_times_out(tmp_path: Path) -> None:
    drips, p99 = await cut_all(tmp_path, 300, 60, 30.0, head_timeout=2.0, body_grace=2.0)
    report(drips[:300], drips[300:], p99)


@pytest.mark.torture
@pytest.mark.timeout(600)
async def test_five_thousand_half_heads_and_a_thousand_slow_bodies(tmp_path: Path) -> None:
    for _ in range(MAX_ATTEMPTS):
        drips, p99 = await cut_all(tmp_path, 5_000, 1_000, BODY_SECONDS + 20)
        heads = drips[:5_000]
        bodies = drips[5_000:]
        report(heads, bodies, p99)
        if lasted(heads) <= HEAD_SECONDS and lasted(bodies) <= BODY_SECONDS and p99 < 0.1:
            return
    pytest.fail(f"failed in {MAX_ATTEMPTS} attempts: see the figures above")
